"""`modelledger quantize`: GGUF files of a version or a base model."""

from __future__ import annotations

from itertools import islice

import click

from modelledger.cli.progress import follow_quantization, interrupted
from modelledger.cli.session import (
    Session,
    json_option,
    pass_session,
    plain,
    print_facts,
    print_json,
    print_messages,
    print_table,
    short,
    size_text,
)
from modelledger.client import Client
from modelledger.ledger.v1 import events_pb2
from modelledger.names import version_resource
from modelledger.quantizer.v1 import quantizer_pb2

SHOWN = 20


@click.command()
@click.argument("model", metavar="[ORG/MODEL|base/KEY]", default="")
@click.argument("version", default="latest")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Q4_K_M (default), Q5_K_M, Q6_K, Q8_0 or F16.")
@click.option("--base", default="", help="Which base of the version, when it has several.")
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@click.option("--list", "list_only", is_flag=True, help="List the newest quantisations instead.")
@json_option
@pass_session
def quantize(
    session: Session,
    model: str,
    version: str,
    types: tuple[str, ...],
    base: str,
    detach: bool,
    list_only: bool,
    as_json: bool,
) -> None:
    """Make GGUF files of a version, or of a base model.

    VERSION is a number like v1.0, "active" or "latest". Exit 1 when no file was made.
    """
    client = session.client
    if list_only:
        return _list(client, as_json)
    if not model:
        raise click.UsageError("name a model, or base/KEY for a base model")
    if model.startswith("base/"):
        if base or version != "latest":
            raise click.UsageError("a base model has no version and no --base")
        source = f"base-models/{model.removeprefix('base/')}"
    else:
        source = version_resource(model, client.version(model, version).version)
    state = client.quantize(source, types, base=base)
    identifier = state.name.rpartition("/")[2]
    if not detach:
        try:
            state = follow_quantization(client.watch_quantization(state.name), quiet=as_json)
        except KeyboardInterrupt:
            interrupted(f"{identifier} goes on without you; `modelledger quantize --list` shows how it ends")
    if as_json:
        print_json(plain(state))
    else:
        _show(state)
    if state.state == quantizer_pb2.QUANTIZATION_STATE_FAILED:
        raise SystemExit(1)
    return None


def _list(client: Client, as_json: bool) -> None:
    found = islice(client.quantizations(), SHOWN)
    if as_json:
        return print_messages(found)
    print_table(
        ["Quantisation", "State", "Source", "Types", "Reason"],
        [
            (
                state.name.rpartition("/")[2],
                _state_name(state),
                _source(state.request),
                ", ".join(state.request.types),
                state.reason,
            )
            for state in found
        ],
        empty="no quantisations yet; make one: modelledger quantize ORG/MODEL",
    )
    return None


def _state_name(state: quantizer_pb2.Quantization) -> str:
    return quantizer_pb2.QuantizationState.Name(state.state).removeprefix("QUANTIZATION_STATE_").lower()


def _source(request: events_pb2.QuantizationRequested) -> str:
    return f"{request.org}/{request.model} {request.version}".rstrip()


def _show(state: quantizer_pb2.Quantization) -> None:
    outcome = state.outcome
    print_facts(
        [
            ("quantisation", state.name.rpartition("/")[2]),
            ("source", _source(state.request)),
            ("state", _state_name(state)),
            ("reason", state.reason),
            ("seconds", f"{outcome.seconds:.1f}" if outcome.files else ""),
            ("licence", "the base folder holds none" if outcome.licence_missing else outcome.licence.name),
        ]
    )
    if outcome.files:
        print_table(
            ["Type", "Size", "Smaller by", "Tensors", "Same answers", "SHA-256"],
            [
                (
                    file.type,
                    size_text(file.file.size),
                    f"{100 * file.reduction:.1f} %",
                    ", ".join(f"{count}×{kind}" for kind, count in sorted(file.tensor_types.items())),
                    f"{file.agreement_equal} of {file.agreement_prompts}"
                    if file.HasField("agreement_prompts")
                    else "not measured",
                    short(file.file.sha256),
                )
                for file in outcome.files
            ],
            empty="",
        )
