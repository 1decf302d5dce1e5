"""Logs without events and witnesses as processes, for tests of what one asks of the other."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from modelledger.cli.child import Child, environment

from ledger.add_checkpoint import encode_request
from ledger.checkpoint import sign_checkpoint
from ledger.cosignature import add_lines, cosignatures
from ledger.edge import Edge
from ledger.merkle import consistency_proof, leaf_hash
from ledger.note import Cosigner, LogSigner, NoteSignature, Verifier


def cosigner(number: int) -> Cosigner:
    """The same witness key for the same number."""
    return Cosigner(f"witness.example/w{number}", Ed25519PrivateKey.from_private_bytes(bytes([100 + number]) * 32))


def signature(note: bytes, witness: Cosigner, time: int = 7) -> NoteSignature:
    """A witness's cosignature on a checkpoint, verified."""
    line = witness.cosign(note.partition(b"\n\n")[0] + b"\n", time)
    return cosignatures(add_lines(note, [line]), [witness.verifier])[0]


@dataclass
class TinyLog:
    """A log of at most 255 entries, of which only their hashes exist. Another `branch` has another history."""

    signer: LogSigner
    branch: str = ""
    edge: Edge = field(default_factory=Edge)
    notes: dict[int, bytes] = field(default_factory=dict)

    def grow(self, size: int) -> bytes:
        """The signed checkpoint at this size."""
        while self.edge.size < size:
            self.edge.append(leaf_hash(f"{self.branch}{self.edge.size}".encode()))
            self.notes[self.edge.size] = sign_checkpoint(self.signer, self.edge.size, self.edge.root())
        if size == 0:
            self.notes[0] = sign_checkpoint(self.signer, 0, Edge().root())
        return self.notes[size]

    def proof(self, old: int, new: int) -> list[bytes]:
        self.grow(new)
        return consistency_proof(self.edge, old, new) if old else []

    def request(self, old: int, new: int) -> bytes:
        """The body of `POST /add-checkpoint`."""
        return encode_request(old, self.proof(old, new), self.grow(new))


@dataclass
class Reply:
    status: int
    content_type: str
    body: bytes


def ask(url: str, method: str, path: str, body: bytes | None = None, timeout: float = 30) -> Reply:
    """One HTTP request by the standard library's client."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=timeout)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return Reply(response.status, response.headers["content-type"], response.read())
    finally:
        connection.close()


def add_checkpoint(url: str, body: bytes) -> Reply:
    return ask(url, "POST", "/add-checkpoint", body)


def monitoring_path(origin: str) -> str:
    return f"/{sha256(origin.encode()).hexdigest()}/checkpoint"


@dataclass
class RunningWitness:
    url: str
    verifier: Verifier


@contextmanager
def witness_process(folder: Path, *vkeys: str, name: str = "", listen: str = "127.0.0.1:0") -> Iterator[RunningWitness]:
    """`modelledger witness` on the directory, until the `with` ends."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "modelledger.cli", "witness", "--json", "--listen", listen, "--data", str(folder)]
    command += [argument for vkey in vkeys for argument in ("--log", vkey)]
    command += ["--name", name] if name else []
    with Child(command, folder / "witness.log", environment()) as child:
        yield RunningWitness(child.ready["url"], Verifier.parse(child.ready["vkey"]))
