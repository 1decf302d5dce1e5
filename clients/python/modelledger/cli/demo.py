"""`modelledger demo`: the whole life of a small model on this machine, through the same commands that people type.

A base model is made, registered, fine-tuned on a fictional ferry line's questions, quantised, activated, served and
asked over the OpenAI API, certified, and audited; then one byte of a certified file is changed and the audit finds it.
Nothing is simulated and nothing is downloaded. Any step that goes wrong ends the demo with exit 1.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click

from ledger.errors import ModelLedgerError, NotReady
from modelledger.cli import run
from modelledger.cli.child import Child, environment
from modelledger.cli.session import print_table
from modelledger.demo import settings

MODEL = f"{settings.ORGANISATION}/assistant"
BASE = f"base/{settings.BASE_NAME}"
CERTIFICATE, TRUST = "certificate", "log.vkey"  # in the demo's folder
ANSWER_SECONDS = 60.0
INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False, path_type=Path), help="Work here.  [default: a temporary one]"
)
@click.option("--discard", is_flag=True, help="Remove everything it made when it went well.")
def demo(folder: Path | None, discard: bool) -> None:
    """Take a small model through its whole life, here, in about a minute."""
    if folder and folder.exists() and any(folder.iterdir()):
        raise click.UsageError(f"{folder} is not empty; choose another --dir")
    work = (folder or Path(tempfile.mkdtemp(prefix="modelledger-demo-"))).absolute()
    work.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        Demo(work).play()
    except KeyboardInterrupt:
        click.echo("interrupted; the services are stopped", err=True)
        click.echo(f"what it made so far is in {work}; to remove it: rm -r {shlex.quote(str(work))}", err=True)
        raise SystemExit(130) from None
    except (ModelLedgerError, OSError, subprocess.SubprocessError) as error:
        click.echo(f"error: the demo failed: {getattr(error, 'message', error)}", err=True)
        click.echo(f"everything it made is in {work}; the services' log: {work / 'services.log'}", err=True)
        raise SystemExit(1) from None
    click.secho(f"\nthe whole life in {time.perf_counter() - started:.1f} s", bold=True)
    if discard:
        shutil.rmtree(work)
        return
    data, bases, whole = (shlex.quote(str(path)) for path in (work / "data", work / "bases", work))
    click.echo(f"the certificate:  {work / CERTIFICATE}")
    click.echo(f"the log's key:    {work / TRUST}")
    click.echo(f"look around:      modelledger up --data {data} --base-root {bases}")
    click.echo(f"remove it all:    rm -r {whole}")


class Demo:
    """One life. Every step is a method that talks to the services from outside."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._bundle = work / CERTIFICATE
        self._trust = work / TRUST
        self._server = ""
        self._openai = ""

    def play(self) -> None:
        with _step("make a base model: two layers, trained from nothing on ferry questions"):
            self._make_base()
        with _step("start the ledger, the trainer, the quantizer and inference"):
            services = Child.up(
                self._work / "data", self._work / "services.log", "--base-root", str(self._work / "bases")
            )
        with services:
            self._server, self._openai = services.ready["grpc"], services.ready["openai"]
            with _step("register the base model and the data"):
                self._modelledger("base", "register", settings.BASE_NAME)
                self._modelledger("base", "list")
                data = ("dataset", "check", str(settings.DATASET), "--register", "--org", settings.ORGANISATION)
                self._modelledger(*data)
            with _step("fine-tune"):
                options = [f"{name}={_text(value)}" for name, value in settings.TRAINING_OPTIONS.items()]
                chosen = [part for option in options for part in ("--set", option)]
                train = ("train", MODEL, "--base", settings.BASE_NAME, "--data", str(settings.DATASET), *chosen)
                self._modelledger(*train)
            with _step("quantise the version, and the base to compare with"):
                self._modelledger("quantize", MODEL, "latest", "--type", "Q4_K_M")
                self._modelledger("quantize", BASE, "--type", "Q4_K_M")
            with _step("make the version active and serve both"):
                self._modelledger("versions", "set-active", MODEL, "latest", "--reason", "first version of the demo")
                self._modelledger("deploy", "enable", MODEL, "--default")
                self._modelledger("deploy", "enable", BASE)
            with _step("ask both, over the OpenAI API, what no training line asked in these words"):
                self._ask()
            with _step("certify the version"):
                self._modelledger("certify", MODEL, "--with-artifacts", "--out", str(self._bundle))
                self._trust.write_text(self._modelledger("log", "key", quiet=True))
                self._modelledger("lineage", MODEL)
                self._modelledger("log", "verify", "--trust", str(self._trust))
        with _step("audit the certificate, with the services stopped"):
            self._verify(self._bundle)
        with _step("change one byte of a certified file and audit again"):
            self._tamper()

    def _make_base(self) -> None:
        target = self._work / "bases" / settings.BASE_NAME
        target.parent.mkdir()
        command = [sys.executable, "-m", "modelledger.demo.base", str(target), "--threads", str(_idle_cores())]
        done = subprocess.run(command, env=environment(HF_HUB_OFFLINE="1"), capture_output=True, text=True)
        if done.returncode:
            raise NotReady(f"the base model could not be made: {(done.stderr or done.stdout).strip()[-500:]}")
        click.echo(done.stdout.splitlines()[-1])

    def _ask(self) -> None:
        questions = json.loads(settings.HELD_OUT.read_bytes())
        rows, right = [], {MODEL: 0, BASE: 0}
        for item in questions:
            answers = {model: self._chat(model, item["question"]) for model in right}
            for model, answer in answers.items():
                right[model] += answer == item["answer"]
            rows.append((item["question"], answers[BASE], answers[MODEL], item["answer"]))
        print_table(["Question", "Base", "Fine-tuned", "Right answer"], rows, empty="")
        click.echo(f"right: base {right[BASE]} of {len(questions)}, fine-tuned {right[MODEL]} of {len(questions)}")
        if right[MODEL] <= right[BASE]:
            raise NotReady("the fine-tuned model does not answer better than its base")

    def _chat(self, model: str, question: str) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 48,
        }
        request = urllib.request.Request(  # noqa: S310 - http, to the service that was just started
            f"{self._openai}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:  # noqa: S310
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise NotReady(f"{model} did not answer: {error.code} {error.read().decode(errors='replace')}") from None
        return str(answer["choices"][0]["message"]["content"]).strip()

    def _verify(self, bundle: Path, *, expected: int = 0) -> str:
        return self._modelledger("verify", str(bundle), "--trust", str(self._trust), expected=expected)

    def _tamper(self) -> None:
        copy = self._work / "tampered"
        shutil.copytree(self._bundle, copy)
        victim = max(copy.rglob("*.gguf"), key=lambda path: path.stat().st_size)
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        if victim.name not in self._verify(copy, expected=1):
            raise NotReady(f"the audit did not name {victim.name}")

    def _modelledger(self, *arguments: str, expected: int = 0, quiet: bool = False) -> str:
        """Run a command of ours, show it, and hand back what it printed. Raises NotReady for another exit code."""
        if not quiet:
            click.secho(f"$ modelledger {shlex.join(self._shown(arguments))}", bold=True)
        printed = _Tee(None if quiet else sys.stdout)
        with redirect_stdout(printed):
            code = run([*(["--server", self._server] if self._server else []), *arguments])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code != expected:
            raise NotReady(f"modelledger {shlex.join(arguments)} ended with exit {code}, not {expected}")
        return printed.getvalue()

    def _shown(self, arguments: tuple[str, ...]) -> Iterator[str]:
        """Paths as they are seen from the demo's folder."""
        for argument in arguments:
            path = Path(argument)
            yield os.path.relpath(path, self._work) if path.is_relative_to(self._work) else argument


class _Tee(io.StringIO):
    """Remembers what is printed, and prints it."""

    def __init__(self, shown: Any) -> None:
        super().__init__()
        self._shown = shown

    def write(self, text: str) -> int:
        if self._shown:
            self._shown.write(text)
        return super().write(text)

    def isatty(self) -> bool:
        return self._shown is not None and bool(self._shown.isatty())

    def flush(self) -> None:
        if self._shown:
            self._shown.flush()


def _idle_cores() -> int:
    """Threads on cores that are busy wait for each other: on a loaded machine one is much faster than all."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores - round(os.getloadavg()[0]))


@contextmanager
def _step(title: str) -> Iterator[None]:
    click.secho(f"\n■ {title}", fg="cyan")
    started = time.perf_counter()
    yield
    click.secho(f"  {time.perf_counter() - started:.1f} s", dim=True)


def _text(value: Any) -> str:
    """An option as --set wants it: JSON, and a plain word as it is."""
    return value if isinstance(value, str) else json.dumps(value)
