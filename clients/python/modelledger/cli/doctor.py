"""`modelledger doctor`: is everything running and sound, and what can this machine do?"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata

import click
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger.checkpoint import open_checkpoint
from ledger.errors import InvalidConfig, InvalidSignature, ModelLedgerError, NotReady
from ledger.kit.client import call
from ledger.note import NoteError, Verifier
from modelledger import __version__
from modelledger.cli.session import Session, json_option, pass_session, print_json, print_table
from modelledger.client import Client

# What the service answers for in the health protocol, by the process it may run in.
SERVICES = {
    "ledger": (
        "modelledger.ledger.v1.LedgerService",
        "modelledger.ledger.v1.RegistryService",
        "modelledger.ledger.v1.CertificationService",
        "modelledger.ledger.v1.SubscriptionService",
    ),
    "trainer": ("modelledger.trainer.v1.TrainerService",),
    "quantizer": ("modelledger.quantizer.v1.QuantizerService",),
    "inference": ("modelledger.inference.v1.InferenceService",),
}
# Optional part of the installation -> the modules that it brings.
EXTRAS = {
    "service": ("eventsourcing", "grpc_health", "grpc_reflection", "starlette", "uvicorn"),
    "ledger": ("sqlalchemy",),
    "trainer": ("torch", "transformers", "peft", "trl", "datasets", "safetensors"),
    "quantizer": ("torch", "transformers", "peft", "safetensors", "llama_cpp"),
    "inference": ("llama_cpp",),
}
OK, WRONG, ABSENT = "ok", "WRONG", "absent"


@dataclass(frozen=True)
class Finding:
    """state: "ok", "WRONG", or "absent" for something optional that this installation does not have."""

    what: str
    state: str
    detail: str


@click.command()
@json_option
@pass_session
def doctor(session: Session, as_json: bool) -> None:
    """Is everything running and sound?

    Exit 1 when a service does not answer, the log's checkpoint does not verify, the registry stopped at an event, a
    consumer group has parked events, or a configuration is not in force.
    """
    client = session.client
    findings = [Finding("version", OK, f"modelledger {__version__}, Python {platform.python_version()}")]
    for name in SERVICES:
        findings.append(_try(f"{name} health", lambda name=name: _health(client, name)))  # type: ignore[misc]
    findings += [
        _try("ledger", lambda: _checkpoint(client)),
        _try("registry", lambda: f"{len(list(client.models()))} models"),
        _try("subscriptions", lambda: _groups(client)),
        _try("trainer", lambda: _bases(client)),
        _try("quantizer", lambda: f"{sum(1 for _ in client.quantizations())} quantisations"),
        _try("inference", lambda: _serving(client)),
        *_libraries(),
    ]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(["Check", "State", "Detail"], [(one.what, one.state, one.detail) for one in findings], empty="")
    if any(finding.state == WRONG for finding in findings):
        raise SystemExit(1)


def _try(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, OK, check())
    except ModelLedgerError as error:
        return Finding(what, WRONG, error.message)


def _health(client: Client, process: str) -> str:
    """The standard gRPC health protocol."""
    stub = health_pb2_grpc.HealthStub(client.channels[process])
    for service in SERVICES[process]:
        response = call(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout=5)
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            state = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
            raise InvalidConfig(f"{service} says {state}")
    return f"{len(SERVICES[process])} serving"


def _checkpoint(client: Client) -> str:
    response = client.checkpoint()
    try:
        verifier = Verifier.parse(response.vkey)
        verified = open_checkpoint(response.checkpoint, [verifier], verifier.name)
    except NoteError as error:
        raise InvalidSignature(f"the checkpoint does not verify: {error}") from None
    return f"checkpoint of {verified.origin} verified, {verified.size} events"


def _groups(client: Client) -> str:
    found = [group for group in client.groups() if not group.closed_reason]
    stuck = [group for group in found if group.parked]
    if stuck:
        names = [(group.name.rpartition("/")[2], group.parked) for group in stuck]
        raise NotReady(
            f"events are parked: {', '.join(f'{parked} of {name}' for name, parked in names)}; "
            f"look at them: modelledger subscriptions parked {names[0][0]}"
        )
    return f"{len(found)} groups, {sum(group.behind for group in found)} events behind, none parked"


def _bases(client: Client) -> str:
    found = list(client.local_bases())
    unusable = [base for base in found if base.unusable_reason]
    reasons = "".join(f"; {base.folder}: {base.unusable_reason}" for base in unusable)
    return f"{len(found) - len(unusable)} usable base models{reasons}"


def _serving(client: Client) -> str:
    found, problem = client.deployments()
    if problem:
        raise InvalidConfig(f"the newest configuration is not in force: {problem}")
    reasons = "".join(f"; {one.name}: {one.problem}" for one in found if one.enabled and one.problem)
    return f"{sum(one.enabled for one in found)} of {len(found)} names enabled{reasons}"


def _libraries() -> list[Finding]:
    """What is installed here; a service elsewhere has an installation of its own."""
    findings = []
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            detail = f"without {', '.join(missing)}; to run it here: pip install 'modelledger[{extra}]'"
            findings.append(Finding(f"can run: {extra}", ABSENT, detail))
        else:
            versions = ", ".join(f"{module} {_version(module)}" for module in modules)
            findings.append(Finding(f"can run: {extra}", OK, versions))
    return findings


def _version(module: str) -> str:
    return metadata.version(_distributions().get(module, [module])[0])


@cache  # it reads every installed package
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
