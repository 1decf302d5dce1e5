"""`modelledger deploy`: which names answer."""

from __future__ import annotations

import click

from modelledger.cli.session import Session, flag, json_option, pass_session, plain, print_json, print_table, short
from modelledger.inference.v1 import inference_pb2


@click.group()
def deploy() -> None:
    """What is served: list, enable, disable."""


@deploy.command("list")
@json_option
@pass_session
def list_deployments(session: Session, as_json: bool) -> None:
    """List the configured names; exit 1 when the newest configuration is not in force."""
    found, problem = session.client.deployments()
    if as_json:
        print_json({"deployments": [plain(one) for one in found], "configProblem": problem})
    else:
        print_table(
            ["Name", "", "Version", "SHA-256", "Loaded", "Problem"],
            [_row(one) for one in found],
            empty="nothing is served; enable a name: modelledger deploy enable ORG/MODEL",
        )
        if problem:
            click.echo(f"error: the configuration's newest edit is not in force: {problem}", err=True)
    if problem:
        raise SystemExit(1)


@deploy.command()
@click.argument("name", metavar="ORG/MODEL|base/KEY")
@click.option("--default", "make_default", is_flag=True, help="Also answer when no name is given.")
@json_option
@pass_session
def enable(session: Session, name: str, make_default: bool, as_json: bool) -> None:
    """Let a name answer from now on. No restart."""
    _show(session.client.set_deployment(name, enabled=True, make_default=make_default), as_json)


@deploy.command()
@click.argument("name", metavar="ORG/MODEL|base/KEY")
@json_option
@pass_session
def disable(session: Session, name: str, as_json: bool) -> None:
    """Let a name answer no more; running answers finish."""
    _show(session.client.set_deployment(name, enabled=False), as_json)


def _show(deployment: inference_pb2.Deployment, as_json: bool) -> None:
    if as_json:
        return print_json(plain(deployment))
    name, state, version, sha256, _, problem = _row(deployment)
    serves = f": serves {version} sha256 {sha256}".replace("  ", " ") if sha256 else ""
    click.echo(f"{name} is {state}{serves}")
    if problem:
        click.echo(f"but nothing can be served yet: {problem}", err=True)
    return None


def _row(one: inference_pb2.Deployment) -> tuple[str, ...]:
    return (
        one.name,
        ("enabled" if one.enabled else "disabled") + flag(one.is_default, ", default"),
        one.serves.version,
        short(one.serves.sha256),
        flag(one.loaded, "yes"),
        one.problem,
    )
