"""An actor inside the ledger process: signs events and appends them through the sequencer.

The registry and the certification actor are such; their commands carry the caller's identity in the event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from ledger import envelope as dsse
from ledger import schema, statement
from ledger.envelope import Signer
from ledger.sequencer import Appended, Sequencer
from ledger.statement import Artifact, Event


@dataclass(frozen=True)
class LocalActor:
    """Writes events as `actor`, one command at a time per stream; a lost race is WrongStreamVersion."""

    actor: str
    signer: Signer
    sequencer: Sequencer

    def next_version(self, stream: str) -> int:
        """The version the next event of a stream must carry."""
        newest = self.sequencer.store.select(stream=stream, descending=True, limit=1)
        return newest[0].version + 1 if newest else 1

    def sign(
        self,
        data: Message,
        stream: str,
        version: int,
        subjects: Sequence[Artifact],
        materials: Sequence[Artifact] = (),
        event_id: str = "",
    ) -> bytes:
        """The entry for an event whose kind is the message's name."""
        event = Event(
            kind=data.DESCRIPTOR.name,
            stream=stream,
            version=version,
            actor=self.actor,
            subjects=tuple(subjects),
            materials=tuple(materials),
            data=schema.to_data(data),
            **({"id": event_id} if event_id else {}),
        )
        return dsse.sign(statement.encode(event), [self.signer])

    async def record(
        self,
        data: Message,
        stream: str,
        version: int,
        subjects: Sequence[Artifact],
        materials: Sequence[Artifact] = (),
        event_id: str = "",
    ) -> Appended:
        # A key service answers over the network, and other calls go on meanwhile.
        entry = await asyncio.to_thread(self.sign, data, stream, version, subjects, materials, event_id)
        return await self.sequencer.append([entry])
