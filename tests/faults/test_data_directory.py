"""Data directories that are not what they were: the ledger stops with what is wrong, and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.config import LedgerConfig
from ledger.errors import DamagedLog, OtherLog, UnsafeKeyFile
from ledger.wiring import LedgerPart


@pytest.fixture
def config(tmp_path: Path) -> LedgerConfig:
    config = LedgerConfig(data=tmp_path / "data", listen="127.0.0.1:0", http="127.0.0.1:0")
    LedgerPart(config).store.close()
    return config


def test_a_second_start_appends_nothing(config: LedgerConfig) -> None:
    first = LedgerPart(config).store.head
    assert first.size == 7  # the log and its six actors
    assert LedgerPart(config).store.head.checkpoint == first.checkpoint


def test_an_emptied_database_is_not_a_new_log(config: LedgerConfig) -> None:
    for path in config.data.glob("log.db*"):
        path.unlink()
    with pytest.raises(DamagedLog, match="restore the database"):
        LedgerPart(config)


def test_another_logs_key_is_refused(config: LedgerConfig, tmp_path: Path) -> None:
    other = LedgerConfig(data=tmp_path / "other", listen="127.0.0.1:0", http="127.0.0.1:0")
    LedgerPart(other).store.close()
    (config.keys / "log.key").write_bytes((other.keys / "log.key").read_bytes())
    with pytest.raises(OtherLog):
        LedgerPart(config)


def test_another_actors_key_is_refused(config: LedgerConfig) -> None:
    (config.keys / "trainer.key").unlink()
    with pytest.raises(OtherLog, match="trainer"):
        LedgerPart(config)


def test_a_key_that_others_can_read_is_refused(config: LedgerConfig) -> None:
    (config.keys / "ledger.key").chmod(0o644)
    with pytest.raises(UnsafeKeyFile, match="chmod 600"):
        LedgerPart(config)


def test_a_service_says_in_one_line_why_it_cannot_start(config: LedgerConfig, tmp_path: Path) -> None:
    settings = tmp_path / "modelledger.toml"
    settings.write_text(f'[ledger]\ndata = "{config.data}"\nlisten = "0.0.0.0:0"\n')
    public = subprocess.run(
        [sys.executable, "-m", "ledger", str(settings)], capture_output=True, text=True, env=dict(os.environ)
    )
    assert public.returncode == 1
    assert "tls_certificate" in public.stderr
    settings.write_text('[ledger]\ncolour = "red"\n')
    unknown = subprocess.run([sys.executable, "-m", "ledger", str(settings)], capture_output=True, text=True)
    assert unknown.returncode == 1
    assert str(settings) in unknown.stderr
    assert "colour" in unknown.stderr
    assert "Traceback" not in public.stderr + unknown.stderr
