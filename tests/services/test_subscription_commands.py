"""`modelledger subscriptions` and `modelledger doctor` on a ledger with a group that parked events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelledger.client import Client

from ledger.signers import log_signer
from ledger.store import Store
from tests.certified import Certified
from tests.groups import write
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


def test_a_registry_that_stopped_is_seen(run: Run, tmp_path: Path) -> None:
    assert _finding(run, "registry")["state"] == "ok"
    data = tmp_path / "data"
    other = Store(f"sqlite:///{data / 'log.db'}", log_signer(data / "keys", "test.log"))
    (index,) = write(other, ["models/acme/assistant"], "VersionCreated")
    other.close()
    # This ledger learns of what another process wrote when it writes itself.
    run("versions", "set-active", "acme/assistant", "v1.0", "--reason", "x")
    finding = _finding(run, "registry")
    assert finding["state"] == "WRONG"
    assert f"the view 'registry' stopped at event {index}" in finding["detail"]
