"""`modelledger export`: the files people know, rendered from the log; and whether copies of them still say the same."""

from __future__ import annotations

from pathlib import Path

import click

from modelledger.cli.session import Session, json_option, pass_session, print_json

FILES = ("MODEL_LOG.md", "model_registry.json", "model_info.json", "README.md")


@click.command()
@click.argument("model", metavar="ORG/MODEL")
@click.option("--out", default=".", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: .]")
@click.option("--check", "check_only", is_flag=True, help="Write nothing; compare the files in --out with the log.")
@json_option
@pass_session
def export(session: Session, model: str, out: Path, check_only: bool, as_json: bool) -> None:
    """Write a model's files from the log, or check copies of them.

    MODEL_LOG.md, model_registry.json, model_info.json and README.md. With --check, exit 1 naming every file that was
    edited, cut off, is older than the log, or is missing.
    """
    rendered = {file: session.client.render(model, file) for file in FILES}
    states = {file: _compare(out / file, content) for file, content in rendered.items()}
    wrong = [file for file, state in states.items() if state != "same"] if check_only else []
    if not check_only:
        out.mkdir(parents=True, exist_ok=True)
        for file, content in rendered.items():
            (out / file).write_bytes(content)
            states[file] = "written"
    if as_json:
        print_json({"folder": str(out), "files": states})
    else:
        for file, state in states.items():
            click.echo(f"{out / file}: {state}")
    if wrong:
        hint = f"write them anew: modelledger export {model} --out {out}"
        click.echo(f"error: not what the log says: {', '.join(wrong)}; {hint}", err=True)
        raise SystemExit(1)


def _compare(path: Path, content: bytes) -> str:
    if not path.exists():
        return "missing"
    return "same" if path.read_bytes() == content else "differs"
