"""A real ledger and two real witnesses: a quorum, a witness that is down, and a log with two histories."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from modelledger import cli

from ledger.add_checkpoint import encode_request
from ledger.checkpoint import open_checkpoint
from ledger.config import LedgerConfig
from ledger.kit.serve import GrpcServer, HttpServer
from ledger.merkle import consistency_proof
from ledger.note import Verifier
from ledger.trust_policy import read_trust_policy
from ledger.wiring import LedgerPart
from tests import loops
from tests.certified import Certified
from tests.databases import ORIGIN
from tests.house import Running, eventually
from tests.log_story import Story
from tests.witnesses import add_checkpoint, ask, monitoring_path, witness_process

Run = Callable[..., tuple[int, str]]


@dataclass
class Serving:
    grpc: str
    http: str

    def cosigned_size(self, vkey: str) -> int:
        reply = ask(self.http, "GET", "/checkpoint.cosigned")
        return open_checkpoint(reply.body, [Verifier.parse(vkey)], ORIGIN).size if reply.status == 200 else 0


@contextmanager
def serving(folder: Path, policy: Path) -> Iterator[Serving]:
    """The ledger process's part on the log in `folder`, behind its servers."""
    config = LedgerConfig(data=folder, listen="127.0.0.1:0", http="127.0.0.1:0", origin=ORIGIN, witnesses=policy)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Running:
        part = LedgerPart(config)
        web = [HttpServer(app, address) for app, address in part.http]
        running = Running(part, GrpcServer(part.servicers, config.address()), web)
        await running.start()
        return running

    try:
        running = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
        try:
            yield Serving(f"127.0.0.1:{running.server.port}", f"http://127.0.0.1:{running.web[0].port}")
        finally:
            asyncio.run_coroutine_threadsafe(running.stop(), loop).result(60)
    finally:
        loops.end(loop, thread)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_(*arguments: object) -> tuple[int, str]:
        """(exit code, everything said)"""
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return code, "".join(capsys.readouterr())

    return run_


def write_policy(path: Path, vkey: str, rule: str, **witnesses: str) -> Path:
    lines = [f"log {vkey}", *(f"witness {name} {rest}" for name, rest in witnesses.items())]
    path.write_text("\n".join([*lines, f"group quorum {rule} {' '.join(witnesses)}", "quorum quorum", ""]))
    return path


def test_a_quorum_of_two_one_down_and_back(tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "ledger"
    world = Certified(folder)
    vkey, start = world.store.signer.vkey(), world.store.head.size
    world.store.close()
    shutil.copy(folder / "log.vkey", folder / "keys" / "log.vkey")
    with witness_process(tmp_path / "w1", vkey) as one:
        with witness_process(tmp_path / "w2", vkey) as two:
            names = {"one": f"{one.verifier.vkey()} {one.url}", "two": f"{two.verifier.vkey()} {two.url}"}
            both = write_policy(tmp_path / "both", vkey, "all", **names)
            either = write_policy(tmp_path / "either", vkey, "any", **names)
            with serving(folder, both) as served:
                eventually(lambda: served.cosigned_size(vkey) == start)
                certify = ("--server", served.grpc, "certify", "acme/assistant", "v1.0", "--out")
                assert run(*certify, tmp_path / "first")[0] == 0
                code, said = run("verify", tmp_path / "first", "--trust", vkey, "--policy", both, "--verbose")
                assert code == 0, said
                assert "cosigned by one, two" in said
                code, note = run("--server", served.grpc, "log", "checkpoint", "--cosigned")
                assert code == 0
                assert read_trust_policy(both).judge(note.encode()).satisfied
        caplog.clear()
        with serving(folder, both) as served:
            agreed = served.cosigned_size(vkey)
            activate = ("versions", "set-active", "acme/assistant", "v1.0", "--reason", "tested")
            assert run("--server", served.grpc, *activate)[0] == 0, "appends go on"
            certify = ("--server", served.grpc, "certify", "acme/assistant", "v1.0", "--out")
            assert run(*certify, tmp_path / "second")[0] == 0
            assert served.cosigned_size(vkey) == agreed > start
            reported = "quorum quorum is not met: cosigned by one; missing two"
            eventually(lambda: any(reported in message for message in caplog.messages))
            trusted = ("verify", tmp_path / "second", "--trust", vkey)
            assert run(*trusted)[0] == 0
            assert run(*trusted, "--policy", either)[0] == 0
            code, said = run(*trusted, "--policy", both)
            assert code == 1
            assert f"INVALID witnesses: {ORIGIN} quorum-not-met ({reported})" in said
            with witness_process(tmp_path / "w2", vkey, listen=two.url.removeprefix("http://")):
                eventually(lambda: served.cosigned_size(vkey) > agreed)
                number = next((tmp_path / "second").glob("statements/*CertificateIssued.dsse.json")).name[:8]
                assert served.cosigned_size(vkey) > int(number)


def test_a_log_with_two_histories_is_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    story = Story(tmp_path / "ledger")
    for name in ("a", "b"):
        story.base(name)
    vkey, size = story.store.signer.vkey(), story.store.head.size
    common = story.store.head.checkpoint
    story.store.close()
    shutil.copy(tmp_path / "ledger" / "log.vkey", tmp_path / "ledger" / "keys" / "log.vkey")
    shutil.copytree(tmp_path / "ledger", tmp_path / "fork")
    fork = Story(tmp_path / "fork")
    for number in range(5):
        fork.base(f"fork{number}")
    head = fork.store.head
    with witness_process(tmp_path / "w", vkey) as witness:
        policy = write_policy(tmp_path / "policy", vkey, "all", w=f"{witness.verifier.vkey()} {witness.url}")
        assert add_checkpoint(witness.url, encode_request(0, [], common)).status == 200
        story = Story(tmp_path / "ledger")
        story.base("c")
        story.store.close()
        with serving(tmp_path / "ledger", policy) as served:
            eventually(lambda: served.cosigned_size(vkey) == size + 1)
        proof = consistency_proof(fork.store.tiles(head), size + 1, head.size)
        assert add_checkpoint(witness.url, encode_request(size + 1, proof, head.checkpoint)).status == 422
        proof = consistency_proof(fork.store.tiles(head), size, head.size)
        assert add_checkpoint(witness.url, encode_request(size, proof, head.checkpoint)).status == 409
        fork.store.close()
        with serving(tmp_path / "fork", policy) as served:
            eventually(lambda: any("witness w: it answered 422" in message for message in caplog.messages))
            assert ask(served.http, "GET", "/checkpoint").status == 200
            assert ask(served.http, "GET", "/checkpoint.cosigned").status == 404
        seen = ask(witness.url, "GET", monitoring_path(ORIGIN)).body
        assert open_checkpoint(seen, [Verifier.parse(vkey)], ORIGIN).size == size + 1
