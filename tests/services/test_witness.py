"""A witness answers as C2SP tlog-witness says, over HTTP, and never cosigns two trees that contradict each other."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.add_checkpoint import MAX_BODY, encode_request
from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.cosignature import cosignatures
from ledger.errors import Damaged, InvalidConfig
from ledger.kit.serve import Address, HttpServer
from ledger.note import Cosigner, LogSigner, Verifier
from ledger.witness.app import create_app
from ledger.witness.serving import open_witness
from tests.databases import ORIGIN, log_signer
from tests.witnesses import Reply, TinyLog, add_checkpoint, ask, monitoring_path, witness_process

OTHER = LogSigner("other.log", Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32))
NOW = 1_800_000_000


class Served:
    """A witness in a directory, behind its real HTTP server."""

    def __init__(self, folder: Path, *logs: Verifier) -> None:
        self.witness, self.state = open_witness(folder, "witness.example/w1", logs)
        self.witness._now = lambda: NOW
        self.verifier = self.witness.cosigner.verifier
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server = HttpServer(create_app(self.witness), Address())
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def add(self, body: bytes) -> Reply:
        return add_checkpoint(self.url, body)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.state.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "w", log_signer().verifier, OTHER.verifier)
    yield made
    made.close()


@pytest.fixture
def log() -> TinyLog:
    return TinyLog(log_signer())


def test_a_growing_log_is_cosigned_at_every_step(served: Served, log: TinyLog) -> None:
    old = 0
    for size in (0, 0, 1, 1, 2, 7, 7, 8, 200):
        reply = served.add(log.request(old, size))
        assert (reply.status, reply.content_type) == (200, "text/plain; charset=utf-8"), reply.body
        assert reply.body.startswith("— witness.example/w1 ".encode())
        assert reply.body.count(b"\n") == 1
        [found] = cosignatures(log.grow(size) + reply.body, [served.verifier])
        assert found.timestamp == NOW
        old = size


def test_logs_do_not_mix(served: Served, log: TinyLog) -> None:
    other = TinyLog(OTHER, "other")
    assert served.add(log.request(0, 5)).status == 200
    assert served.add(other.request(5, 9)).status == 409
    assert served.add(other.request(0, 9)).status == 200
    assert served.add(log.request(5, 9)).status == 200


def test_monitors_read_the_newest_cosigned_checkpoint(served: Served, log: TinyLog) -> None:
    assert ask(served.url, "GET", monitoring_path(ORIGIN)).status == 404
    foreign = OTHER.sign(b"something else\n").split(b"\n\n")[1]
    for old, size in ((0, 3), (3, 4)):
        assert served.add(encode_request(old, log.proof(old, size), log.grow(size) + foreign)).status == 200
    reply = ask(served.url, "GET", monitoring_path(ORIGIN))
    assert (reply.status, reply.content_type) == (200, "text/plain; charset=utf-8")
    assert open_checkpoint(reply.body, [log.signer.verifier], ORIGIN).size == 4
    assert len(cosignatures(reply.body, [served.verifier])) == 1
    assert b"other.log" not in reply.body, "a witness hands on what it verified, nothing else"
    for path in ("/checkpoint", "/" + "0" * 64 + "/checkpoint", "/" + ORIGIN + "/checkpoint"):
        assert ask(served.url, "GET", path).status == 404


def test_another_old_size_is_409_with_the_remembered_one(served: Served, log: TinyLog) -> None:
    assert served.add(log.request(2, 5)).body == b"0\n"
    served.add(log.request(0, 5))
    for old, new in ((0, 5), (3, 5), (0, 9), (4, 9), (6, 9), (2, 3)):
        reply = served.add(log.request(old, new))
        assert (reply.status, reply.content_type, reply.body) == (409, "text/x.tlog.size", b"5\n")


def test_what_the_log_did_not_sign_is_403(served: Served, log: TinyLog) -> None:
    note = log.grow(5)
    stranger = TinyLog(LogSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)))
    body, _, line = note.partition(b"\n\n")
    name, blob = line.rsplit(b" ", 1)
    changed = bytearray(base64.b64decode(blob))
    changed[-1] ^= 1
    broken = body + b"\n\n" + name + b" " + base64.b64encode(changed) + b"\n"
    cosigned = body + b"\n\n" + Cosigner(ORIGIN, log.signer.private_key).cosign(body + b"\n", 1)
    for refused in (stranger.grow(5), body + b"\n\n", broken, broken + line, cosigned):
        reply = served.add(encode_request(0, [], refused))
        assert reply.status == 403, reply.body
    assert served.add(encode_request(0, [], note)).status == 200


def test_an_unknown_log_is_404(served: Served) -> None:
    stranger = TinyLog(LogSigner("nobody.example", OTHER.private_key))
    assert served.add(stranger.request(0, 5)).status == 404


def test_a_tree_that_does_not_continue_the_remembered_one_is_422(served: Served, log: TinyLog) -> None:
    fork = TinyLog(log.signer, "fork")
    assert served.add(encode_request(0, [bytes(32)], log.grow(5))).status == 422
    assert served.add(log.request(0, 5)).status == 200
    for body in (
        fork.request(5, 5),  # the same size, another root
        fork.request(5, 9),
        encode_request(5, [], log.grow(9)),
        encode_request(5, log.proof(5, 9)[::-1], log.grow(9)),
        encode_request(5, [*log.proof(5, 9), bytes(32)], log.grow(9)),
        encode_request(5, log.proof(5, 9), fork.grow(9)),
        encode_request(5, [bytes(32)], log.grow(5)),
    ):
        reply = served.add(body)
        assert reply.status == 422, reply.body
    assert served.add(log.request(5, 9)).status == 200


def test_size_zero_with_another_root_is_422(served: Served) -> None:
    wrong = Checkpoint(ORIGIN, 1, bytes(32)).encode().replace(b"\n1\n", b"\n0\n")
    assert served.add(encode_request(0, [], log_signer().sign(wrong))).status == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        b"old 0",
        b"old 0\n\n",
        b"old 00\n\nNOTE",
        b"old -1\n\nNOTE",
        b"old 9223372036854775808\n\nNOTE",
        b"old  0\n\nNOTE",
        b"old 0\r\n\r\nNOTE",
        b"size 0\n\nNOTE",
        b"old 0\nAAAA\n\nNOTE",
        b"old 0\nnot base64\n\nNOTE",
        b"old 0\n" + (base64.b64encode(bytes(32)) + b"\n") * 64 + b"\nNOTE",
        b"old 6\n\nNOTE",  # beyond the checkpoint's size
        b"old 0\n\n" + ORIGIN.encode() + b"\n",
        b"old 0\n\n" + ORIGIN.encode() + b"\n\xff\n\n\n",
        b"old 0\n\nTEXT",
        bytes(1000),
    ],
)
def test_what_is_no_request_is_400(served: Served, log: TinyLog, body: bytes) -> None:
    other = log.signer.sign(f"{ORIGIN}\nnot a checkpoint\n".encode())
    reply = served.add(body.replace(b"NOTE", log.grow(5)).replace(b"TEXT", other))
    assert (reply.status, reply.content_type) == (400, "text/plain; charset=utf-8"), reply.body
    assert ask(served.url, "GET", monitoring_path(ORIGIN)).status == 404


def test_a_request_larger_than_any_is_not_read(served: Served, log: TinyLog) -> None:
    assert served.add(log.request(0, 5) + bytes(MAX_BODY)).status == 413
    assert ask(served.url, "GET", "/add-checkpoint").status == 405


def test_a_witness_that_cannot_remember_does_not_cosign(served: Served, log: TinyLog) -> None:
    with closing(served.state._writer.raw_connection()) as connection:  # the pool hands out this one again
        connection.cursor().execute("PRAGMA query_only=ON")
    reply = served.add(log.request(0, 5))
    assert reply.status == 503
    assert b"sqlite" not in reply.body.lower()
    assert ask(served.url, "GET", monitoring_path(ORIGIN)).status == 404
    with closing(served.state._writer.raw_connection()) as connection:
        connection.cursor().execute("PRAGMA query_only=OFF")
    assert served.add(log.request(0, 5)).status == 200


def test_of_two_checkpoints_that_continue_the_same_tree_one_wins(served: Served, log: TinyLog) -> None:
    fork = TinyLog(log.signer, "fork")
    old = 0
    for size in range(3, 90, 3):
        branches = log.request(old, size), (log if old else fork).request(old, size + 1)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(served.add, branches)
        assert {first.status, second.status} == {200, 409}
        if old == 0 and second.status == 200:
            log, fork = fork, log
        old = size if first.status == 200 else size + 1
        assert {first.body, second.body} & {b"%d\n" % old}


def test_a_restarted_witness_remembers(tmp_path: Path, log: TinyLog) -> None:
    vkey = log.signer.vkey()
    with witness_process(tmp_path / "w", vkey, name="w.example") as first:
        assert add_checkpoint(first.url, log.request(0, 5)).status == 200
    with witness_process(tmp_path / "w", vkey) as second:
        assert second.verifier == first.verifier
        assert second.verifier.name == "w.example"
        reply = add_checkpoint(second.url, log.request(0, 6))
        assert (reply.status, reply.body) == (409, b"5\n")
        assert add_checkpoint(second.url, log.request(5, 6)).status == 200
    assert (tmp_path / "w/keys/witness.key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "w/witness.vkey").read_text() == f"{first.verifier.vkey()}\n"


def test_what_a_witness_is_not_opened_with(tmp_path: Path) -> None:
    logs = [log_signer().verifier]
    for number, name in enumerate(("with space", "a+b", "\udcff")):
        with pytest.raises(InvalidConfig, match="name of the witness"):
            open_witness(tmp_path / str(number), name, logs)
    for wrong in ([], [Cosigner("w", OTHER.private_key).verifier]):
        with pytest.raises(InvalidConfig):
            open_witness(tmp_path / "w", "", wrong)
    _, state = open_witness(tmp_path / "w", "", logs)
    state.close()
    with pytest.raises(InvalidConfig, match="says that this witness is"):
        open_witness(tmp_path / "w", "another", logs)
    database = tmp_path / "w" / "witness.db"
    for lost in (database.unlink, database.touch):  # an empty file remembers no more than none
        lost()
        with pytest.raises(Damaged, match="restore it from a backup"):
            open_witness(tmp_path / "w", "", logs)
