"""The quantizer's command: request a quantisation of a version, or of a base model as it is.

It loads what it needs, decides, and records one event. What the worker does with it is in worker.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from google.protobuf import json_format
from modelledger.ledger.v1 import events_pb2, registry_pb2, registry_pb2_grpc

from ledger import strict_json
from ledger.errors import ArtifactMismatch, InvalidInput, InvalidName, NotFound, NotReady, Refused
from ledger.kit import catalog
from ledger.kit.aggregate import Recorded
from ledger.kit.application import Command, LedgerApplication
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.client import asked
from ledger.resource_names import BASE_ORG, split_version
from ledger.statement import Artifact
from quantizer.aggregate import Quantization, RegisteredBase, quantization_stream
from quantizer.config import QuantizerConfig
from quantizer.spec import LORA, TYPES

DEFAULT_TYPES = ("Q4_K_M",)
BASE_PREFIX = "base-models/"


class Quantizing(LedgerApplication):
    """Commands of the quantizer, recorded by the actor "quantizer"."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__("quantizer", str(config.data / "keys" / "quantizer.key"), config, config.key)
        self.config = config
        self.artifacts = ArtifactStore(config.data / "artifacts")
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel)

    def catalogue(self) -> catalog.Catalogue:
        return catalog.discover(self.config.bases)

    def request(
        self, source: str, types: Sequence[str], base: str, caller: events_pb2.Caller, request_id: str = ""
    ) -> Quantization:
        """Record a quantisation for the worker to take; the same caller's same request_id gets the same one again.

        source: `orgs/{org}/models/{model}/versions/{version}` or `base-models/{key}`; base: which one of the version's.
        Raises NotFound, InvalidInput, Refused (version revoked), NotReady (base not registered), ArtifactMismatch (its
        folder was changed).
        """
        command = Command("StartQuantization", caller, request_id)
        wanted = _checked_types(types)

        def same(earlier: Recorded) -> bool:
            was = earlier.data
            return isinstance(was, events_pb2.QuantizationRequested) and _asks_for(was, source, wanted, base)

        if earlier := self.done(command, same):
            return self.load(Quantization, earlier.originator_id)
        if source.startswith(BASE_PREFIX):
            request, materials = self._of_base(source.removeprefix(BASE_PREFIX), base)
        else:
            request, materials = self._of_version(source, base)
        if LORA in wanted and len(materials) == 1:
            raise InvalidInput(f"types: {LORA} needs an adapter; {source} has none")
        request.types.extend(wanted)
        request.caller.CopyFrom(caller)
        return self._record_request(request, materials, command, same)

    def quantization(self, identifier: str) -> Quantization:
        """Raises NotFound."""
        return self.load(Quantization, quantization_stream(identifier)).require()

    def folder_of(self, key: str, sha256: str) -> catalog.BaseModel:
        """The base model's folder, its bytes being the registered ones. Raises NotFound or ArtifactMismatch."""
        models = self.catalogue().models
        if key not in models:
            raise NotFound(f"base model {key} is not in the configured folders; put it back, or configure its folder")
        return _as_registered(models[key], {sha256})

    def _of_base(self, query: str, base: str) -> tuple[events_pb2.QuantizationRequested, list[Artifact]]:
        if base:
            raise InvalidInput("base: is only for versions; the source names the base model already")
        [found] = catalog.select([query], self.catalogue())
        registered = self.load(RegisteredBase, f"{BASE_PREFIX}{found.key}").digests
        if not registered:
            raise NotReady(
                f"base model {found.key} is not registered; register it first: modelledger base register {found.key}"
            )
        _as_registered(found, registered)
        request = events_pb2.QuantizationRequested(org=BASE_ORG, model=found.key, base=found.key)
        return request, [Artifact(f"{BASE_PREFIX}{found.key}", found.sha256)]

    def _of_version(self, source: str, base: str) -> tuple[events_pb2.QuantizationRequested, list[Artifact]]:
        try:
            name, _ = split_version(source, "source")
        except InvalidName as error:
            raise InvalidName(f"{error.message} or base-models/{{key}}", violations=error.violations) from None
        version = asked(self.registry.GetVersion, registry_pb2.GetVersionRequest(name=source)).version
        if version.revoked:
            raise Refused(f"version {version.version} of {name} was revoked, or something it is made from was")
        adapters = {adapter.base: adapter for adapter in version.record.adapters}
        if not base and len(adapters) > 1:
            known = ", ".join(sorted(adapters))
            raise InvalidInput(f"base: version {version.version} of {name} has several; name one of {known}")
        chosen = adapters[catalog.match(base or next(iter(adapters)), list(adapters))]
        self.folder_of(chosen.base, chosen.base_sha256)
        request = events_pb2.QuantizationRequested(
            org=name.org, model=name.model, version=version.version, base=chosen.base
        )
        materials = [Artifact(f"{BASE_PREFIX}{chosen.base}", chosen.base_sha256)]
        return request, materials + [Artifact(adapter.name, adapter.sha256) for adapter in chosen.chain]

    def _record_request(
        self,
        request: events_pb2.QuantizationRequested,
        materials: Sequence[Artifact],
        command: Command,
        same: Callable[[Recorded], bool],
    ) -> Quantization:
        def made(job: str) -> Quantization:
            request.quantization = job
            document = strict_json.canonical(
                {
                    "materials": [{"name": m.name, "sha256": m.sha256} for m in materials],
                    "request": json_format.MessageToDict(request, always_print_fields_with_no_presence=True),
                }
            )
            stored = self.artifacts.put_bytes(document)
            quantization = Quantization(quantization_stream(job))
            introduced = [Artifact(f"requests/{job}", stored.sha256)]
            quantization.trigger(request, introduced, materials, event_id=command.event_id)
            return quantization

        return self.begin("quant", made, command, same)


def _as_registered(found: catalog.BaseModel, registered: Collection[str]) -> catalog.BaseModel:
    if found.sha256 not in registered:
        raise ArtifactMismatch(
            f"{found.path} has changed since it was registered as {found.key}: it now hashes to {found.sha256}, the "
            f"log has {' and '.join(sorted(registered))}. Restore the folder, or register it as it is now: modelledger "
            f"base register {found.key}"
        )
    return found


def _asks_for(was: events_pb2.QuantizationRequested, source: str, types: Sequence[str], base: str) -> bool:
    """Whether these arguments may have made that request."""
    if tuple(was.types) != tuple(types):
        return False
    if source.startswith(BASE_PREFIX):
        return was.org == BASE_ORG and not base and catalog.mean([source.removeprefix(BASE_PREFIX)], [was.model])
    name, version = split_version(source, "source")
    return (
        (was.org, was.model) == (name.org, name.model)
        and version in (was.version, "active", "latest")
        and (not base or catalog.mean([base], [was.base]))
    )


def _checked_types(asked: Sequence[str]) -> tuple[str, ...]:
    wanted = tuple(asked) or DEFAULT_TYPES
    for name in wanted:
        if name not in TYPES:
            raise InvalidInput(f"types: {name[:40]!r} is unknown; known are {', '.join(TYPES)}")
    if len(set(wanted)) != len(wanted):
        raise InvalidInput(f"types: {', '.join(wanted)}: name each type once")
    return wanted
