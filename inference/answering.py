"""From a name to an answer: the configuration says whether, the gate says which file, an engine answers.

Implements openai_http.Backend; gRPC asks it the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inference.engines import Engines
from inference.gate import Gate, Vouched
from inference.openai_http import Answer, ModelCard, Provenance
from inference.openai_request import GenerateCall
from inference.serving_config import ServedModel, ServingConfig
from ledger.errors import Damaged, NotReady
from ledger.resource_names import parse_served


class Answering:
    """Reads the configuration anew for every call, so that an edit holds from the next one on."""

    def __init__(self, config: ServingConfig, gate: Gate, engines: Engines) -> None:
        self._config = config
        self._gate = gate
        self._engines = engines

    async def identify(self, token: str | None) -> str:
        """The web server listens on the loopback interface only, where nobody proves who they are."""
        return "local:unknown"

    async def models(self, caller: str) -> Sequence[ModelCard]:
        """The enabled names. created: when the file came into the store; 0 while there is nothing to serve."""
        enabled = self._config.current().enabled()
        files = await asyncio.gather(*(self.servable(model) for model in enabled))
        return [self._card(model, file) for model, (file, _) in zip(enabled, files, strict=True)]

    async def generate(self, call: GenerateCall) -> Answer:
        """Raises NotFound for an unknown or disabled name, NotReady when there is nothing to serve under it."""
        file = await self._gate.vouched(self._config.current().served(call.model))
        return Answer(provenance(file), self._engines.generate(file, call.generation))

    async def servable(self, model: ServedModel) -> tuple[Vouched | None, str]:
        """The file a name is served from, or why there is none. Raises Unreachable without a ledger."""
        try:
            return await self._gate.vouched(model), ""
        except (NotReady, Damaged) as error:
            return None, error.message

    def _card(self, model: ServedModel, file: Vouched | None) -> ModelCard:
        return ModelCard(
            id=model.name,
            created=int(file.path.stat().st_mtime) if file else 0,
            owned_by=parse_served(model.name, "name").org,
            ready=file is not None and file.gguf.sha256 in self._engines.held(),
        )


def provenance(file: Vouched) -> Provenance:
    return Provenance(file.name, file.version, file.gguf.sha256, file.event_index)
