"""`modelledger up`: the four services in one process on one data directory."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ledger.errors import InvalidConfig, MissingCapability, Refused

if TYPE_CHECKING:  # the services need more than the base install
    from inference.config import InferenceConfig
    from ledger.config import LedgerConfig
    from ledger.kit.process import Part
    from ledger.kit.serve import Address
    from quantizer.config import QuantizerConfig
    from trainer.config import TrainerConfig

LOCK = "up.lock"
BASES = "base-models"


@dataclass(frozen=True)
class Configs:
    """One configuration for each service, all about one data directory."""

    ledger: LedgerConfig
    trainer: TrainerConfig
    quantizer: QuantizerConfig
    inference: InferenceConfig


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="MODELLEDGER_CONFIG",
    help="TOML with the sections [ledger], [trainer], [quantizer] and [inference].",
)
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Where everything is kept.")
@click.option(
    "--base-root",
    "roots",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that holds base model folders; repeatable.  [default: DATA/base-models]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON.")
def up(file: Path | None, data: Path | None, roots: tuple[Path, ...], as_json: bool) -> None:
    """Run all services on this machine until interrupted.

    MODELLEDGER_<SECTION>_<FIELD> in the environment wins over the file. Port 0 takes a free port.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        from ledger.kit.process import serve

        configs = read_configs(file, data, roots, os.environ)
    except ModuleNotFoundError as error:
        install = "pip install 'modelledger[all]'"
        raise MissingCapability(
            f"the services are not installed here ({error.name} is missing); run: {install}"
        ) from None
    with _only_one(configs.ledger.data):
        serve(_serve(configs, as_json))


def read_configs(
    file: Path | None, data: Path | None, roots: tuple[Path, ...], environment: Mapping[str, str]
) -> Configs:
    """The file's sections, the environment, and what the command line says on top. Raises InvalidConfig."""
    from inference.config import InferenceConfig
    from ledger.config import LedgerConfig
    from ledger.kit import config
    from quantizer.config import QuantizerConfig
    from trainer.config import TrainerConfig

    document, source = config.read_file(file), str(file or "")
    ledger = config.section(LedgerConfig, "ledger", document, environment, source)
    listen = _resolved(ledger.address())
    ledger = replace(ledger, listen=str(listen), data=data or ledger.data)

    def common(name: str) -> dict[str, Any]:
        """What the other services share with the ledger, unless it is theirs by name."""
        given = {**document.get(name, {}), **_from_environment(name, environment)}
        values: dict[str, Any] = {}
        if data or "data" not in given:
            values["data"] = ledger.data
        if data or "ledger" not in given:
            values["ledger"] = _dialled(listen)
        return values

    trainer = config.section(TrainerConfig, "trainer", document, environment, source)
    bases = trainer.bases + roots
    bases = bases or (ledger.data / BASES,)
    trainer = replace(trainer, bases=bases, **common("trainer"))
    quantizer = config.section(QuantizerConfig, "quantizer", document, environment, source)
    for name, configured in (("trainer", trainer.bases), ("quantizer", quantizer.bases)):
        for folder in configured:
            if folder != ledger.data / BASES and not folder.is_dir():
                raise InvalidConfig(f"{source or 'environment'}: [{name}] bases: {folder} is no folder")
    quantizer = replace(quantizer, bases=quantizer.bases or bases, **common("quantizer"))
    inference = config.section(InferenceConfig, "inference", document, environment, source)
    return Configs(ledger, trainer, quantizer, replace(inference, **common("inference")))


async def _serve(configs: Configs, as_json: bool) -> None:
    from inference.wiring import InferencePart
    from ledger.kit.process import run
    from ledger.kit.serve import GrpcServer, HttpServer
    from ledger.wiring import LedgerPart
    from quantizer.wiring import QuantizerPart
    from trainer.wiring import TrainerPart

    if (default := configs.ledger.data / BASES) in configs.trainer.bases:
        default.mkdir(parents=True, exist_ok=True)
    # The ledger first: it makes the data directory and the keys that the others sign with.
    parts: list[Part] = [
        LedgerPart(configs.ledger),
        TrainerPart(configs.trainer),
        QuantizerPart(configs.quantizer),
        InferencePart(configs.inference),
    ]

    def ready(grpc_server: GrpcServer, web: list[HttpServer]) -> None:
        log, openai = (f"http://{server.address.host}:{server.port}" for server in web)
        addresses = {"grpc": f"{grpc_server.address.host}:{grpc_server.port}", "log": log, "openai": f"{openai}/v1"}
        if as_json:
            click.echo(json.dumps(addresses))
        else:
            data = configs.ledger.data
            named = ", ".join(f"{name} {address}" for name, address in addresses.items())
            click.echo(f"modelledger is ready: {named}, data {data}")
        sys.stdout.flush()

    await run(parts, configs.ledger.address(), ready)


@contextmanager
def _only_one(data: Path) -> Iterator[None]:
    """Two processes on one data directory would fight over workers and engines: the second is refused."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(20).strip()
            raise Refused(
                f"{data} is in use by another modelledger{f' (process {holder})' if holder else ''}; "
                "stop it, or choose another --data"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _resolved(address: Address) -> Address:
    """The services are told the ledger's port before it listens, so a free one is picked here."""
    if address.port:
        return address
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.create_server((address.host, 0), family=family) as found:
        return replace(address, port=found.getsockname()[1])


def _dialled(listen: Address) -> str:
    """Where a service of this process reaches the address; 0.0.0.0 is for listening only."""
    return str(replace(listen, host={"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)))  # noqa: S104


def _from_environment(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    prefix = f"MODELLEDGER_{name.upper()}_"
    return {key.removeprefix(prefix).lower(): value for key, value in environment.items() if key.startswith(prefix)}
