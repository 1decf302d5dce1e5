"""Commands that save bundles and audit logs: what lands on disk, and what is found."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelledger.audit import audit
from modelledger.bundle_download import save
from modelledger.ledger.v1 import certification_pb2

from ledger.checkpoint import Checkpoint, open_checkpoint
from ledger.errors import AlreadyExists, Damaged, DamagedLog
from ledger.founding import actor_signers, found, log_signer
from ledger.sequencer import Sequencer
from ledger.store import Store

# Bundles to disk


def _pieces(*files: tuple[str, bytes]) -> Iterator[certification_pb2.DownloadBundleResponse]:
    for path, content in files:
        for start in range(0, max(len(content), 1), 3):
            yield certification_pb2.DownloadBundleResponse(path=path, chunk=content[start : start + 3])


FILES = (("manifest.json", b"{}"), ("artifacts/a/b.bin", b"0123456789"), ("empty", b""))


def test_a_bundle_becomes_a_folder_or_a_zip(tmp_path: Path) -> None:
    assert save(_pieces(*FILES), tmp_path / "new" / "cert") == [path for path, _ in FILES]
    for path, content in FILES:
        assert (tmp_path / "new" / "cert" / path).read_bytes() == content
    save(_pieces(*FILES), tmp_path / "cert.zip")
    with zipfile.ZipFile(tmp_path / "cert.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == dict(FILES)


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a//b", "a\\..\\b"])
@pytest.mark.parametrize("out", ["cert", "cert.zip"])
def test_a_path_that_leaves_the_bundle_is_refused_and_nothing_is_left(tmp_path: Path, path: str, out: str) -> None:
    with pytest.raises(Damaged):
        save(_pieces(("good", b"x"), (path, b"bad")), tmp_path / "in" / out)
    assert list((tmp_path / "in").iterdir()) == []


def test_a_bundle_is_never_written_over_or_left_half(tmp_path: Path) -> None:
    save(_pieces(*FILES), tmp_path / "cert")
    with pytest.raises(AlreadyExists):
        save(_pieces(*FILES), tmp_path / "cert")

    def breaks() -> Iterator[certification_pb2.DownloadBundleResponse]:
        yield from _pieces(*FILES)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        save(breaks(), tmp_path / "other")
    with pytest.raises(Damaged):
        save(_pieces(*FILES, ("again", b""), FILES[0]), tmp_path / "other")
    with pytest.raises(Damaged):
        save(_pieces(), tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["cert"]


# The whole log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], Checkpoint]:
    """The entries and the checkpoint of a newly founded log: its creation and the enrolment of every actor."""
    folder = tmp_path_factory.mktemp("log")
    signer = log_signer(folder, "test.log")
    store = Store(f"sqlite:///{folder / 'log.db'}", signer)
    found(Sequencer(store), signer, actor_signers(folder), folder / "log.vkey")
    checkpoint = open_checkpoint(store.head.checkpoint, [signer.verifier], "test.log")
    entries = [store.get(index).entry for index in range(checkpoint.size)]
    store.close()
    return entries, checkpoint


def test_a_whole_log_is_audited(log: tuple[list[bytes], Checkpoint]) -> None:
    entries, checkpoint = log
    summary = audit(entries, checkpoint)
    assert summary.streams == 7  # log, and actors/ of each role
    assert summary.actors == ["certification", "inference", "ledger", "quantizer", "registry", "trainer"]


def test_every_change_of_the_log_is_found_with_its_position(log: tuple[list[bytes], Checkpoint]) -> None:
    entries, checkpoint = log
    for index in range(len(entries)):
        changed = entries[index].replace(b'"sig":"ME', b'"sig":"MF')
        assert changed != entries[index]
        with pytest.raises(DamagedLog, match=f"event {index}"):
            audit([*entries[:index], changed, *entries[index + 1 :]], checkpoint)
    with pytest.raises(DamagedLog, match="event 2"):
        audit([*entries[:2], entries[1], *entries[2:]], checkpoint)
    with pytest.raises(DamagedLog, match="holds 6 events"):
        audit(entries[:-1], checkpoint)
    with pytest.raises(DamagedLog, match="root"):  # two enrolments may change places by the rules, not by the root
        audit([*entries[:2], entries[3], entries[2], *entries[4:]], checkpoint)
