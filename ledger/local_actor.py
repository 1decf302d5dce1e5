"""An actor inside the ledger process: signs events and appends them through the sequencer.

The registry and the certification actor are such; their commands carry the caller's identity in the event. An
`Author` only signs, for whoever appends by other means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from ledger import envelope as dsse
from ledger import schema, statement
from ledger.committer import Appended
from ledger.envelope import Signer
from ledger.sequencer import Sequencer
from ledger.statement import Artifact, Event
from ledger.store import Store


@dataclass(frozen=True)
class Author:
    """Signs events as `actor`."""

    actor: str
    signer: Signer
    store: Store

    def next_version(self, stream: str) -> int:
        """The version the next event of a stream must carry."""
        newest = self.store.select(stream=stream, descending=True, limit=1)
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


@dataclass(frozen=True)
class LocalActor(Author):
    """Writes them, one command at a time per stream; a lost race is WrongStreamVersion."""

    sequencer: Sequencer

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
