"""`modelledger subscriptions` and `modelledger doctor` on a ledger with a group that parked events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelledger.client import Client

from ledger.signers import log_signer
from ledger.store import Store
from ledger.writing import Row
from tests.certified import Certified
from tests.house import eventually
from tests.ledger_alone import Run, commands, serving


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with serving(Certified(tmp_path / "data"), tmp_path / "data") as address:
        yield address


@pytest.fixture
def run(address: str, capsys: pytest.CaptureFixture[str]) -> Run:
    return commands(address, capsys)


def _finding(run: Run, what: str) -> dict[str, str]:
    found = json.loads(run("doctor", "--json")[1])
    return next(finding for finding in found if finding["what"] == what)


def test_parked_events_are_seen_listed_and_replayed(run: Run, address: str) -> None:
    assert run("subscriptions", "list")[:2] == (0, "no groups yet; a program makes one: client.create_group(...)\n")
    with Client(address) as client:
        client.create_group("mail")
        client.create_group("old")
        client.close_group("old", "nobody reads it")
        assert _finding(run, "subscriptions")["detail"].startswith("1 groups, ")
        claimed = client.claim("mail", "worker-1")
        first, *rest = [delivery.event.index for delivery in claimed.deliveries]
        client.park("mail", claimed.lease, [first], "[bold]no such address")
        client.ack("mail", claimed.lease, rest)

    code, out, _ = run("subscriptions", "list")
    assert code == 0
    assert "closed: nobody reads it" in out
    assert ["mail", "*", "0", "0", "0", "1", str(len(rest))] in [line.split() for line in out.splitlines()]
    finding = _finding(run, "subscriptions")
    assert finding["state"] == "WRONG"
    assert finding["detail"] == ("events are parked: 1 of mail; look at them: modelledger subscriptions parked mail")

    code, out, _ = run("subscriptions", "parked", "mail")
    assert code == 0
    assert "[bold]no such address" in out
    assert "worker-1" in out
    (listed,) = json.loads(run("subscriptions", "parked", "mail", "--json")[1])
    assert (listed["index"], listed["attempts"]) == (str(first), 1)

    assert run("subscriptions", "replay", "mail", "999999") == (
        1,
        "0 events will be delivered again\n",
        "event 999999 is not parked\n",
    )
    assert run("subscriptions", "replay", "mail", str(first)) == (0, "1 events will be delivered again\n", "")
    assert run("subscriptions", "parked", "mail")[1] == "nothing is parked\n"
    assert _finding(run, "subscriptions")["state"] == "ok"


def test_a_group_that_is_not_there_is_named(run: Run) -> None:
    for command in ("parked", "replay"):
        code, _, err = run("subscriptions", command, "nobody")
        assert code == 1
        assert "there is no group 'nobody'" in err
    assert run("subscriptions", "replay", "mail", "first")[0] == 2
    assert run("subscriptions", "parked", "a/b/c")[0] == 1


def test_an_event_that_the_registry_cannot_take_in_is_named_with_what_to_do(run: Run, tmp_path: Path) -> None:
    """Not the first of its batch: everything before it can be read."""
    assert _finding(run, "registry")["state"] == "ok"
    data = tmp_path / "data"
    other = Store(f"sqlite:///{data / 'log.db'}", log_signer(data / "keys", "test.log"))
    with other.writing() as writing:
        # A copy of an event is folded like the event; what comes after it is none.
        like = other.get(0)
        rows = [Row(str(uuid.uuid4()), "copies/1", 1, like.kind, "0" * 64, like.entry)]
        rows.append(Row(str(uuid.uuid4()), "models/acme/assistant", 99, "VersionCreated", "0" * 64, b"no envelope"))
        writing.append(rows)
    index = other.head.size - 1
    other.close()
    finding = eventually(lambda: (now := _finding(run, "registry"))["state"] == "WRONG" and now)
    assert f"the view 'registry' cannot take in event {index} (VersionCreated of models/acme/" in finding["detail"]
    assert "update this ledger" in finding["detail"]
    assert "modelledger log verify" in finding["detail"]
    code, _, err = run("versions", "list", "acme/assistant")
    assert code == 1
    assert f"event {index} " in err
