"""`modelledger log rebuild`: done, or given up with Ctrl-C; the ledger goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from modelledger import cli

from ledger import registry_view, views
from ledger.registry_view import REGISTRY_VIEW
from ledger.signers import log_signer
from ledger.store import Store
from tests.certified import Certified
from tests.house import eventually
from tests.ledger_alone import commands, serving

STOP_AT = 7


@pytest.fixture
def world(tmp_path: Path) -> Certified:
    return Certified(tmp_path / "data")


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is pressed while an event is folded, in the middle of a batch."""
    monkeypatch.setattr(views, "BATCH", 3)
    fold = registry_view.fold_registry

    def fold_and_interrupt(event: Any, index: int, rows: Any) -> None:
        if index == STOP_AT:
            os.kill(os.getpid(), signal.SIGINT)
        fold(event, index, rows)

    monkeypatch.setattr(registry_view, "fold_registry", fold_and_interrupt)


def _rows(data: Path) -> tuple[int, list[tuple[str, bytes]]]:
    store = Store(f"sqlite:///{data / 'log.db'}", log_signer(data / "keys", "test.log"))
    try:
        with store.views.open(REGISTRY_VIEW) as rows:
            return rows.next_position, rows.scan("", limit=10_000)
    finally:
        store.close()


def test_the_registry_is_rebuilt_to_identical_bytes(
    world: Certified, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    with serving(world, data) as address:
        assert commands(address, capsys)("versions", "list", "acme/assistant")[0] == 0
        before = _rows(data)
        assert cli.run(["log", "rebuild", "--data", str(data), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"folded": before[0], "events": before[0]}
        assert _rows(data) == before
        assert commands(address, capsys)("versions", "list", "acme/assistant")[0] == 0
    assert cli.run(["log", "rebuild", "--data", str(data)]) == 0
    assert capsys.readouterr().out == f"registry: {before[0]} of {before[0]} events folded\n"
    assert _rows(data) == before


@pytest.mark.usefixtures("interrupting")
@pytest.mark.parametrize("running", [True, False])
def test_an_interrupted_rebuild_is_gone_on_with_by_the_ledger(
    world: Certified, tmp_path: Path, capsys: pytest.CaptureFixture[str], running: bool
) -> None:
    data = tmp_path / "data"
    with serving(world, data) as address:
        assert commands(address, capsys)("versions", "list", "acme/assistant")[0] == 0
        before = _rows(data)
        if running:
            code = cli.run(["log", "rebuild", "--data", str(data)])
            assert code == 130
            assert eventually(lambda: commands(address, capsys)("versions", "list", "acme/assistant")[0] == 0)
            assert _rows(data) == before
    if not running:
        code = cli.run(["log", "rebuild", "--data", str(data)])
        captured = capsys.readouterr()
        assert code == 130
        assert captured.out == f"registry: 9 of {before[0]} events folded\n"
        assert "the ledger goes on from there" in captured.err
        assert _rows(data)[0] == 9
        with serving(world, data) as address:
            assert commands(address, capsys)("versions", "list", "acme/assistant")[0] == 0
        assert _rows(data) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_directory_without_a_log_is_refused_and_stays_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["log", "rebuild", "--data", str(tmp_path)]) == 1
    assert "has no log.key" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
