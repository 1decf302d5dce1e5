"""The ledger asks its witnesses: what it sends, what it believes of the answers, and that nothing waits for them."""

from __future__ import annotations

import base64
import http.server
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from ledger.add_checkpoint import AddCheckpoint, encode_request, parse_request
from ledger.checkpoint import open_checkpoint
from ledger.cosignature_store import CosignatureStore
from ledger.cosigned import Checkpoints, CosignedCheckpoints
from ledger.errors import InvalidConfig, NotReady, Unreachable
from ledger.note import Cosigner, Verifier
from ledger.trust_policy import parse_trust_policy
from ledger.witness.serving import open_witness
from ledger.witness.witness import Answer
from ledger.witness_client import MAX_ANSWER, WitnessClient
from ledger.witness_follower import WitnessFollower
from ledger.witnessing import Witnessing, open_witnessing
from tests.databases import ORIGIN, StoreFactory, log_signer
from tests.house import eventually
from tests.logs import Log
from tests.raw_answers import answering
from tests.witnesses import TinyLog, add_checkpoint, cosigner

INTERVAL = 0.05
Behave = Callable[[bytes], Answer]


@dataclass
class Answering:
    """A real HTTP server whose answers the test chooses; `received` is what came, and when."""

    behave: Behave
    received: list[tuple[float, AddCheckpoint]] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[Answering]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.received.append((time.monotonic(), parse_request(body)))
                answer = outer.behave(body)
                self.send_response(answer.status)
                self.send_header("content-type", answer.content_type)
                self.send_header("location", f"{outer.url}/elsewhere")
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/prefix/"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@dataclass
class Asking:
    """A log, and a witness of ours behind a server that a test can make answer otherwise."""

    log: Log
    url: str
    server: Answering
    cosigner: Cosigner
    honest: Behave

    @property
    def verifier(self) -> Verifier:
        return self.cosigner.verifier

    @contextmanager
    def witnessing(self) -> Iterator[CosignedCheckpoints]:
        policy = f"witness w {self.verifier.vkey()} {self.server.url}\nquorum w\n"
        asking = Witnessing(
            self.log.store, self.url, parse_trust_policy(policy.encode()), interval=INTERVAL, patience=5 * INTERVAL
        )
        asking.start()
        try:
            assert isinstance(asking.checkpoints, CosignedCheckpoints)
            yield asking.checkpoints
        finally:
            asking.stop()
            asking.close()

    def append(self, number: int = 1) -> int:
        for _ in range(number):
            self.log.append(self.log.dataset(f"d{self.log.store.head.size}"))
        return self.log.store.head.size


@pytest.fixture
def asking(store_factory: StoreFactory, tmp_path: Path) -> Iterator[Asking]:
    store = store_factory()
    witness, state = open_witness(tmp_path / "w", "witness.example/w", [store.signer.verifier])
    with Answering(witness.add_checkpoint).running() as server:
        yield Asking(Log(store), store_factory.url_of(store), server, witness.cosigner, witness.add_checkpoint)
    state.close()


def agreed_size(checkpoints: Checkpoints) -> int:
    try:
        return checkpoints.agreed().size
    except NotReady:
        return 0


def test_every_head_is_cosigned_in_the_end(asking: Asking) -> None:
    with asking.witnessing() as checkpoints:
        for _ in range(3):
            size = asking.append(4)
            eventually(lambda size=size: agreed_size(checkpoints) == size)
        agreed = checkpoints.agreed().note
    assert open_checkpoint(agreed, [asking.log.store.signer.verifier, asking.verifier], ORIGIN).size == size
    assert asking.server.received[0][1].old_size == 0
    with asking.witnessing() as checkpoints:
        time.sleep(5 * INTERVAL)
        before = len(asking.server.received)
        size = asking.append()
        eventually(lambda: agreed_size(checkpoints) == size)
        assert [r.old_size for _, r in asking.server.received[before:]] == [size - 1], "it goes on where it was"


def test_a_busy_log_asks_seldom_and_for_the_newest_only(asking: Asking) -> None:
    with asking.witnessing() as checkpoints:
        began = time.monotonic()
        while time.monotonic() - began < 20 * INTERVAL:
            size = asking.append()
        eventually(lambda: agreed_size(checkpoints) == size)
        passed = time.monotonic() - began
    times = [moment for moment, _ in asking.server.received]
    assert len(times) <= passed / INTERVAL + 1
    assert min(later - earlier for earlier, later in pairwise(times)) >= INTERVAL * 0.9
    sizes = [
        open_checkpoint(r.checkpoint, [asking.log.store.signer.verifier], ORIGIN).size
        for _, r in asking.server.received
    ]
    assert sizes == sorted(set(sizes))


def test_witnesses_of_a_busy_log_cosign_the_same_checkpoints(
    asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked at different moments, answer after different times, and still agree again and again."""
    rounds: list[int] = []
    ask_for = WitnessFollower.ask_for
    monkeypatch.setattr(WitnessFollower, "ask_for", lambda self, head: (rounds.append(head.size), ask_for(self, head)))
    other, state = open_witness(tmp_path / "w2", "witness.example/w2", [asking.log.store.signer.verifier])

    def after(intervals: float, behave: Behave) -> Behave:
        return lambda body: (time.sleep(INTERVAL * intervals), behave(body))[1]

    asking.server.behave = after(1.5, asking.honest)
    with Answering(after(2.3, other.add_checkpoint)).running() as server:
        policy = f"witness v {asking.verifier.vkey()} {asking.server.url}\n"
        policy += f"witness w {other.cosigner.vkey()} {server.url}\ngroup both all v w\nquorum both\n"
        witnessing = Witnessing(asking.log.store, asking.url, parse_trust_policy(policy.encode()), interval=INTERVAL)
        witnessing.start()
        began = time.monotonic()
        while len(set(rounds)) < 10:
            assert time.monotonic() - began < 30, "rounds end when the quorum is met, not when patience ends"
            asking.append()
        witnessing.stop()
        witnessing.close()
    state.close()
    with closing(CosignatureStore(asking.url)) as stored:
        agreed = [one.size for one in stored.newest(limit=100) if len(one.lines) == 2]
    assert len(agreed) >= 9  # the last round was not waited for


def test_rounds_are_an_interval_apart_also_when_no_quorum_is_asked_for(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[float] = []
    monkeypatch.setattr(WitnessFollower, "ask_for", lambda self, head: rounds.append(time.monotonic()))
    policy = f"witness w {asking.verifier.vkey()} {asking.server.url}\nquorum none\n"
    witnessing = Witnessing(asking.log.store, asking.url, parse_trust_policy(policy.encode()), interval=INTERVAL)
    witnessing.start()
    began = time.monotonic()
    while len(rounds) < 5:
        asking.append()
        assert time.monotonic() - began < 30
    witnessing.stop()
    witnessing.close()
    assert min(later - earlier for earlier, later in pairwise(rounds)) >= INTERVAL * 0.9


def test_a_witness_at_another_size_gets_a_proof_from_there(asking: Asking) -> None:
    """Its answer was lost, or the ledger's database is one that a backup brought back."""
    with asking.witnessing() as checkpoints:
        asking.append(3)
        eventually(lambda: agreed_size(checkpoints) == asking.log.store.head.size)
    lost: list[Answer] = []

    def answers_into_the_void(body: bytes) -> Answer:
        answer = asking.honest(body)
        if answer.status == 200 and not lost:
            lost.append(answer)
            return Answer(502, b"gateway\n")
        return answer

    asking.server.behave = answers_into_the_void
    size = asking.append()
    before = len(asking.server.received)
    with asking.witnessing() as checkpoints:
        eventually(lambda: agreed_size(checkpoints) == size)
    assert lost
    assert [r.old_size for _, r in asking.server.received[before:]] == [size - 1, size - 1, size]


def test_what_a_witness_must_not_answer(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of it is stored, the log goes on, and the thread lives to hear a better answer."""
    other = cosigner(5)
    size = asking.append()
    text = asking.log.store.head.checkpoint.partition(b"\n\n")[0] + b"\n"
    stale = asking.log.store.signer.sign(text).partition(b"\n\n")[2]
    # Below a blank line of its own, the witness's signature on all of the note would pass for one on its text.
    of_the_note = b"\n" + asking.cosigner.cosign(asking.log.store.head.checkpoint, 1)
    answers = [
        (Answer(200, of_the_note), "is no cosignature"),  # while this is the newest checkpoint
        (Answer(200, b""), "holds no line of its key"),
        (Answer(200, b"hello\n"), "is no cosignature"),
        (Answer(200, b"\xff\n"), "is no cosignature"),
        (Answer(200, b"\n"), "is no cosignature"),
        (Answer(200, stale), "holds no line of its key"),
        (Answer(200, other.cosign(text, 1)), "holds no line of its key"),
        (Answer(200, _renamed(other.cosign(text, 1), other.verifier, asking.verifier)), "is no cosignature"),
        (Answer(200, b"x" * (MAX_ANSWER + 1)), "more than 65536 bytes"),
        (Answer(307, b""), "answered 307"),
        (Answer(404, b"who?\n"), "answered 404: 'who?'"),
        (Answer(409, b"5\n"), "answered 409"),
        (Answer(409, b"05\n", "text/x.tlog.size"), "409 without its size"),
        (Answer(409, b"99999999\n", "text/x.tlog.size"), "has seen 99999999 events of this log"),
        (Answer(409, b"1\n", "text/x.tlog.size"), "it is at size 1 now"),
        (Answer(500, b""), "answered 500"),
    ]
    caplog.set_level(logging.WARNING)
    for answer, reason in answers:
        asking.server.behave = lambda body, answer=answer: answer
        caplog.clear()
        with asking.witnessing() as checkpoints:
            eventually(lambda: caplog.messages, 30)
            assert reason in caplog.messages[0]
            assert "quorum w is not met: cosigned by nobody; missing w" in caplog.messages[0]
            assert agreed_size(checkpoints) == 0
            size = asking.append()
    asking.server.behave = asking.honest
    with asking.witnessing() as checkpoints:
        eventually(lambda: agreed_size(checkpoints) == size)


def _renamed(line: bytes, old: Verifier, new: Verifier) -> bytes:
    """The line of one key under the name and ID of another."""
    blob = base64.b64decode(line.split(b" ")[2])
    assert blob[:4] == old.key_id
    return "— ".encode() + new.name.encode() + b" " + base64.b64encode(new.key_id + blob[4:]) + b"\n"


def test_after_failures_a_witness_is_asked_less_often_and_then_again(asking: Asking) -> None:
    asking.server.behave = lambda body: Answer(503, b"")
    asking.append()
    with asking.witnessing() as checkpoints:
        eventually(lambda: len(asking.server.received) == 4)
        times = [moment for moment, _ in asking.server.received]
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert all(pause >= INTERVAL * 2 ** (number + 1) * 0.9 for number, pause in enumerate(pauses))
        asking.server.behave = asking.honest
        eventually(lambda: agreed_size(checkpoints) == asking.log.store.head.size)


def test_a_silent_witness_delays_nothing(asking: Asking) -> None:
    released = threading.Event()

    def silent(body: bytes) -> Answer:
        released.wait(60)
        return asking.honest(body)

    asking.server.behave = silent
    with asking.witnessing() as checkpoints:
        eventually(lambda: asking.server.received)
        began = time.monotonic()
        size = asking.append(20)
        assert checkpoints.newest().size == size
        assert time.monotonic() - began < 30, "the witness is silent for a minute"
        released.set()
        eventually(lambda: agreed_size(checkpoints) == size)


def test_a_witness_that_never_ends_its_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.witness_client.SECONDS", 0.5)
    never = pytest.raises(Unreachable, match="the answer does not end")
    with answering(b"", again=b"HTTP/1.1 100 Continue\r\n\r\n") as port, never:
        WitnessClient(f"http://127.0.0.1:{port}").add_checkpoint(b"old 0\n\nx")


def test_an_answer_in_time_leaves_no_clock_running() -> None:
    with Answering(lambda body: Answer(200, b"line\n")).running() as server:
        body = encode_request(0, [], TinyLog(log_signer()).grow(1))
        assert WitnessClient(server.url).add_checkpoint(body) == b"line\n"
    eventually(lambda: not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)], 5)


def test_a_log_that_forgot_events_is_told_so(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    """The witness has seen a longer history under the same key: nothing is signed that contradicts it."""
    longer = TinyLog(asking.log.store.signer)
    assert add_checkpoint(asking.server.url.rstrip("/"), longer.request(0, 200)).status == 200
    caplog.set_level(logging.WARNING)
    with asking.witnessing() as checkpoints:
        asking.append()
        eventually(lambda: any("must not go on under the same key" in message for message in caplog.messages))
        assert agreed_size(checkpoints) == 0


def test_a_log_with_another_history_is_refused(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    fork = TinyLog(asking.log.store.signer, "fork")
    assert add_checkpoint(asking.server.url.rstrip("/"), fork.request(0, 3)).status == 200
    caplog.set_level(logging.WARNING)
    with asking.witnessing() as checkpoints:
        asking.append()
        eventually(lambda: any("answered 422" in message for message in caplog.messages))
        assert agreed_size(checkpoints) == 0


@pytest.mark.parametrize(
    "url",
    [
        "ftp://w",
        "w",
        "http://",
        "http://w:99999",
        "http://w:x",
        "http://a b/",
        "http://u@w",
        "http://w/?q",
        "http://ö/",
    ],
)
def test_urls_that_no_witness_has(url: str) -> None:
    with pytest.raises(InvalidConfig, match="URL of a witness"):
        WitnessClient(url)


def test_policies_that_a_ledger_cannot_follow(sqlite_stores: StoreFactory, tmp_path: Path) -> None:
    store, file = sqlite_stores(), tmp_path / "policy"
    witness = f"witness w {cosigner(1).vkey()}"
    many = "".join(f"witness w{n} {cosigner(n).vkey()} http://w\n" for n in range(65))
    other = f"log {TinyLog(log_signer(bytes(32))).signer.vkey()}\n{witness} http://w\nquorum w\n"
    for text, reason in (
        ("quorum w\n", "line 1"),
        (f"{witness}\nquorum w\n", "no witness has a URL"),
        (f"{witness} ftp://w\nquorum w\n", "ftp://w"),
        (other, "add the line: log test.log"),
        (f"{many}quorum none\n", "at most 64"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidConfig, match=f"{file}.*{reason}"):
            open_witnessing(store, sqlite_stores.url_of(store), file)
    with pytest.raises(InvalidConfig, match="absent"):
        open_witnessing(store, sqlite_stores.url_of(store), tmp_path / "absent")
