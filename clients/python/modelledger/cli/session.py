"""What every command shares: the client to call, and how answers are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:  # grpc and protobuf take longer to import than `modelledger --help` may take
    from google.protobuf.message import Message
    from rich.console import Console

    from modelledger.client import Client

UNFOLDED = 1_000  # columns

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Session:
    """The addresses of one command line, and the client made of them on first use."""

    server: str
    trainer: str = ""
    quantizer: str = ""
    inference: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""

    @cached_property
    def client(self) -> Client:
        from modelledger.client import Client

        return Client(
            self.server,
            trainer=self.trainer,
            quantizer=self.quantizer,
            inference=self.inference,
            ca_file=self.ca,
            cert_file=self.cert,
            key_file=self.key,
        )

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


pass_session = click.make_pass_decorator(Session)


def json_option(command: Command) -> Command:
    """`--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def plain(message: Message) -> Any:
    """A message as proto3 JSON with every field, so that a program finds the same keys each time."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, always_print_fields_with_no_presence=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_messages(messages: Iterable[Message]) -> None:
    print_json([plain(message) for message in messages])


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table; the sentence `empty` when there are no rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False)
    for row in rows:
        # Text, not str: names from outside may look like rich's markup.
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    if table.row_count:
        console().print(table)
    else:
        click.echo(empty)


def console() -> Console:
    """stdout. Without a terminal lines are as long as they need to be, for grep and for files."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=UNFOLDED)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Aligned `name  value` lines; empty values are left out."""
    shown = [(name, value) for name, value in facts if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name:<{width}}  {value}")


def size_text(size: int) -> str:
    """Bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(value: float) -> str:
    """A measured number for people."""
    return f"{value:.4g}"


def short(sha256: str) -> str:
    return sha256[:12]


def flag(value: bool, text: str) -> str:
    return text if value else ""
