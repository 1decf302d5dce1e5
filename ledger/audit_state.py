"""What an audit must remember of the events behind it: actors' keys, streams, artifacts, event ids, the tree's edge.

The rules ask about every earlier event, so this grows with the log; the process does not. What was mentioned lately is
in memory, the rest in a SQLite file: a temporary one, or one kept beside the checkpoint that the next audit
continues from. Everything is one transaction: a file that is left behind is the state after a whole audit, or none.

The file is as trusted as the checkpoint beside it. Deleting it costs the next audit time, nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from ledger import strict_json
from ledger.edge import Edge
from ledger.errors import InvalidInput, Refused
from ledger.rules import ActorKey, Introduced, Known

FORMAT = 1
HELD = 200_000  # event ids in memory; streams and artifacts are no more
_TABLES = {
    "facts": "name TEXT PRIMARY KEY, value",
    "edge": "level INTEGER PRIMARY KEY, hashes BLOB",
    "keys": "keyid TEXT PRIMARY KEY, key TEXT",
    "ids": "id TEXT PRIMARY KEY",
    "streams": "stream TEXT PRIMARY KEY, version INTEGER",
    "artifacts": "sha256 TEXT PRIMARY KEY, names TEXT, position INTEGER, revoked_at INTEGER",
}


class AuditState:
    """The state behind `size` events: `known` for the rules, `edge` for the tree.

    With a `path`, the state that an earlier audit saved there for the checkpoint `note`, if there is one.
    """

    def __init__(self, path: Path | None = None, note: bytes = b"") -> None:
        self.known, self.edge = Known(), Edge()
        self._path = path
        self._below = False  # whether the file knows something that is not in memory
        try:
            if path and not self._load(note):
                self.forget()
        except sqlite3.OperationalError as error:
            others = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            why = "another audit uses it" if others else f"{error}; is {path and path.parent} a folder to write in?"
            raise Refused(f"{path}: cannot be used: {why}") from None
        except sqlite3.DatabaseError as error:
            raise InvalidInput(
                f"{path}: not the state of an audit that can be continued ({error}); delete it"
            ) from None

    @cached_property
    def _file(self) -> sqlite3.Connection:
        """A short audit without a path never makes one."""
        file = sqlite3.connect(self._path or "", timeout=1, isolation_level=None)
        file.execute("BEGIN IMMEDIATE")
        for name, columns in _TABLES.items():
            file.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns}) WITHOUT ROWID")
        return file

    def __enter__(self) -> AuditState:
        return self

    def __exit__(self, *_: object) -> None:
        if "_file" in self.__dict__:
            self._file.close()  # what was not saved is rolled back

    def forget(self) -> None:
        """Begin with nothing."""
        self.known, self.edge, self._below = Known(), Edge(), False
        for name in _TABLES:
            self._file.execute(f"DELETE FROM {name}")  # noqa: S608 - ours

    def recall(self, ids: Iterable[str], streams: Iterable[str], digests: Iterable[str]) -> None:
        """Have in memory what the rules may ask about events with these."""
        if not self._below:
            return
        known = self.known
        for (event_id,) in self._those("ids", "id", ids, known.ids):
            known.ids[event_id] = (0, "")
        known.streams.update(self._those("streams", "stream", streams, known.streams))
        for digest, names, position, revoked_at in self._those("artifacts", "sha256", digests, known.artifacts):
            known.artifacts[digest] = Introduced(frozenset(json.loads(names)), position, revoked_at)

    def rest(self) -> None:
        """Put what is in memory into the file when it has become too much. Called between two bundles."""
        if len(self.known.ids) > HELD:
            self._write()

    def counts(self) -> tuple[int, int]:
        """How many streams and artifacts there are."""
        if not self._below:
            return len(self.known.streams), len(self.known.artifacts)
        self._write()
        [(streams, artifacts)] = self._file.execute(
            "SELECT (SELECT count(*) FROM streams), (SELECT count(*) FROM artifacts)"
        )
        return streams, artifacts

    def save(self, note: bytes) -> None:
        """Keep everything for the audit that continues from this checkpoint."""
        self._write()
        self._file.execute("DELETE FROM edge")
        levels = [(level, self.edge.partial(level)) for level in range(self.edge.levels)]
        self._file.executemany("INSERT INTO edge VALUES (?, ?)", levels)
        keys = [
            (keyid, json.dumps(asdict(key) | {"public_key": key.public_key.hex()}))
            for keyid, key in self.known.keys.items()
        ]
        self._file.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?)", keys)
        facts = [("format", FORMAT), ("note", sha256(note).hexdigest()), ("size", self.known.size)]
        self._file.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts)
        self._file.execute("COMMIT")

    def _load(self, note: bytes) -> bool:
        facts: dict[str, Any] = dict(self._file.execute("SELECT name, value FROM facts"))
        if facts.get("format") != FORMAT or facts.get("note") != sha256(note).hexdigest():
            return False
        levels = [hashes for (hashes,) in self._file.execute("SELECT hashes FROM edge ORDER BY level")]
        self.edge = Edge.restored(facts["size"], levels)
        self.known.size = facts["size"]
        for keyid, text in self._file.execute("SELECT keyid, key FROM keys"):
            fields = strict_json.loads(text.encode())
            self.known.keys[keyid] = ActorKey(**fields | {"public_key": bytes.fromhex(fields["public_key"])})
        self._below = True
        return True

    def _those(self, table: str, key: str, mentioned: Iterable[str], held: Mapping[str, Any]) -> Iterator[Any]:
        if wanted := set(mentioned) - held.keys():
            query = f"SELECT * FROM {table} WHERE {key} IN (SELECT value FROM json_each(?))"  # noqa: S608 - ours
            yield from self._file.execute(query, (json.dumps(sorted(wanted)),))

    def _write(self) -> None:
        known, write = self.known, self._file.executemany
        write("INSERT OR REPLACE INTO ids VALUES (?)", ((event_id,) for event_id in known.ids))
        write("INSERT OR REPLACE INTO streams VALUES (?, ?)", known.streams.items())
        artifacts = (
            (digest, json.dumps(sorted(item.names)), item.index, item.revoked_at)
            for digest, item in known.artifacts.items()
        )
        write("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?)", artifacts)
        known.ids, known.streams, known.artifacts, self._below = {}, {}, {}, True
