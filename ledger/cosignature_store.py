"""Cosignatures in the log's database: append-only rows beside the checkpoints they are on.

They arrive after a commit and from outside, so they have engines of their own and no part in the writer's
transactions. Not flushed to disk one by one: a witness cosigns the same checkpoint again when it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import func, select

from ledger.database import driver_errors, reader_engine, writer_engine
from ledger.note import NoteSignature, Verifier
from ledger.tables import checkpoints, cosignatures


@dataclass(frozen=True)
class Line:
    """One witness's signature line, verified before it was stored."""

    witness: str
    key_id: str  # hex
    line: bytes


@dataclass(frozen=True)
class Cosigned:
    """A checkpoint as the log signed it, and what is known to stand below."""

    size: int
    note: bytes
    lines: tuple[Line, ...]


class CosignatureStore:
    """The cosignatures of one log. The store of the log has made the tables."""

    def __init__(self, url: str) -> None:
        # NORMAL: an append that waits for this transaction waits for no flush to disk.
        self._writer = writer_engine(url, synchronous="NORMAL")
        self._reader = reader_engine(url)

    def add(self, size: int, cosignature: NoteSignature) -> None:
        """Remember a verified cosignature on the checkpoint of this size. A witness's first one stays."""
        verifier, column = cosignature.verifier, cosignatures.c
        values = {"size": size, "witness": verifier.name, "key_id": verifier.key_id.hex()}
        mine = [getattr(column, name) == value for name, value in values.items()]
        with driver_errors(), self._writer.begin() as connection:
            if connection.execute(select(column.size).where(*mine)).first() is None:
                connection.execute(cosignatures.insert().values(**values, line=cosignature.line))

    def lines(self, size: int) -> tuple[Line, ...]:
        """On the checkpoint of this size, by witness."""
        column = cosignatures.c
        query = select(column.witness, column.key_id, column.line).where(column.size == size)
        with driver_errors(), self._reader.connect() as connection:
            rows = connection.execute(query.order_by(column.witness, column.key_id)).all()
        return tuple(Line(row.witness, row.key_id, bytes(row.line)) for row in rows)

    def newest(self, *, start: int = 0, stop: int | None = None, limit: int = 100) -> list[Cosigned]:
        """Cosigned checkpoints with start <= size < stop, the largest first, at most `limit`."""
        column = cosignatures.c
        sizes = select(column.size).where(column.size >= start).distinct()
        if stop is not None:
            sizes = sizes.where(column.size < stop)
        chosen = sizes.order_by(column.size.desc()).limit(limit).subquery()
        query = (
            select(column.size, checkpoints.c.note, column.witness, column.key_id, column.line)
            .join(chosen, chosen.c.size == column.size)
            .join(checkpoints, checkpoints.c.size == column.size)
            .order_by(column.size.desc(), column.witness, column.key_id)
        )
        with driver_errors(), self._reader.connect() as connection:
            rows: Sequence[tuple[int, bytes, str, str, bytes]] = connection.execute(query).tuples().all()
        return [
            Cosigned(size, bytes(note), tuple(Line(row[2], row[3], bytes(row[4])) for row in group))
            for (size, note), group in groupby(rows, key=lambda row: row[:2])
        ]

    def newest_size(self, verifier: Verifier) -> int:
        """Of what this witness cosigned; 0 when it has cosigned nothing."""
        column = cosignatures.c
        query = select(func.max(column.size)).where(
            column.witness == verifier.name, column.key_id == verifier.key_id.hex()
        )
        with driver_errors(), self._reader.connect() as connection:
            return connection.execute(query).scalar() or 0

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()
