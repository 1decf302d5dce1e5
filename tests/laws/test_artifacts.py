"""The artifact store: what was put in comes out, byte for byte, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import manifest, strict_json
from ledger.errors import ArtifactMismatch, InvalidInput, NotFound
from ledger.kit import artifacts
from ledger.kit.artifacts import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def _blobs(store: ArtifactStore) -> list[Path]:
    return sorted(path for path in (store.root / "blobs").rglob("*") if path.is_file())


def _temporary(store: ArtifactStore) -> list[str]:
    return os.listdir(store.root / "tmp")


@given(data=st.binary(max_size=2_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_bytes_come_back_under_their_digest(store: ArtifactStore, data: bytes) -> None:
    stored = store.put_bytes(data)
    assert (stored.sha256, stored.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert stored.sha256 in store
    assert store.read_bytes(stored.sha256) == data
    assert store.put_bytes(data) == stored
    assert not _temporary(store)


def test_what_a_killed_writer_left_is_removed_a_day_later(store: ArtifactStore) -> None:
    for name, age in (("tmpold", artifacts.ABANDONED_SECONDS + 60), ("tmpnew", artifacts.ABANDONED_SECONDS - 60)):
        left = store.root / "tmp" / name
        left.write_bytes(b"half of it")
        os.utime(left, (time.time() - age,) * 2)
    assert sorted(_temporary(store)) == ["tmpnew", "tmpold"]
    again = ArtifactStore(store.root)  # somebody may still be writing the newer one
    assert _temporary(again) == ["tmpnew"]


def test_a_file_comes_back_and_is_kept_read_only(store: ArtifactStore, tmp_path: Path) -> None:
    data = os.urandom((2 << 20) + 17)
    source = tmp_path / "file"
    source.write_bytes(data)
    pieces: list[int] = []
    stored = store.put_file(source, pieces.append)
    assert stored == artifacts.hash_file(source)
    assert pieces == [1 << 20, 1 << 20, 17]
    path = store.get(stored.sha256)
    assert path.read_bytes() == data
    assert path.relative_to(store.root).as_posix() == f"blobs/sha256/{stored.sha256[:2]}/{stored.sha256}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def _folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


FILES = {"config.json": b"{}", "weights/a.bin": b"\x00" * 10, "weights/b.bin": b"\x00" * 10, "\u00e9": b""}


def test_a_directory_comes_back_with_every_name(store: ArtifactStore, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", FILES)
    stored = store.put_directory(folder)
    assert stored.sha256 == manifest.digest(artifacts.scan_directory(folder))
    assert stored.size == 22
    out = store.checkout(stored.sha256, tmp_path / "out")
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()} == FILES


@pytest.mark.parametrize(
    "change",
    [
        {"config.json": b"{ }"},
        {"more": b""},
        {"weights/a.bin": b"\x00" * 9 + b"\x01"},
    ],
)
def test_any_change_of_a_directory_changes_its_digest(tmp_path: Path, change: dict[str, bytes]) -> None:
    before = manifest.digest(artifacts.scan_directory(_folder(tmp_path / "a", FILES)))
    assert manifest.digest(artifacts.scan_directory(_folder(tmp_path / "b", FILES))) == before
    assert manifest.digest(artifacts.scan_directory(_folder(tmp_path / "c", {**FILES, **change}))) != before


def test_renaming_a_file_changes_the_digest(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", FILES)
    before = manifest.digest(artifacts.scan_directory(folder))
    (folder / "config.json").rename(folder / "config2.json")
    assert manifest.digest(artifacts.scan_directory(folder)) != before


def test_a_link_or_a_pipe_in_a_directory_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    linked = _folder(tmp_path / "linked", FILES)
    (linked / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidInput, match="symbolic link"):
        store.put_directory(linked)
    piped = _folder(tmp_path / "piped", FILES)
    os.mkfifo(piped / "pipe")
    with pytest.raises(InvalidInput, match="neither a file nor a directory"):
        store.put_directory(piped)


def test_no_directory_and_an_empty_one_are_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a directory"):
        store.put_directory(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="without files"):
        store.put_directory(tmp_path / "empty")


def test_a_changed_blob_is_never_handed_out_and_can_be_put_again(store: ArtifactStore) -> None:
    stored = store.put_bytes(b"weights")
    path = store.path_of(stored.sha256)
    path.chmod(0o644)
    path.write_bytes(b"Weights")
    with pytest.raises(ArtifactMismatch, match=str(path)):
        store.get(stored.sha256)
    with pytest.raises(ArtifactMismatch):
        store.read_bytes(stored.sha256)
    store.put_bytes(b"weights")
    assert store.read_bytes(stored.sha256) == b"weights"


def test_a_directory_with_a_changed_file_is_not_laid_out(store: ArtifactStore, tmp_path: Path) -> None:
    stored = store.put_directory(_folder(tmp_path / "model", FILES))
    path = store.path_of(hashlib.sha256(b"\x00" * 10).hexdigest())
    path.chmod(0o644)
    path.write_bytes(b"\x01" * 10)
    with pytest.raises(ArtifactMismatch):
        store.checkout(stored.sha256, tmp_path / "out")


def test_what_was_never_put_is_not_found(store: ArtifactStore) -> None:
    with pytest.raises(NotFound, match="0" * 64):
        store.get("0" * 64)
    assert "0" * 64 not in store


@pytest.mark.parametrize("name", ["", "..", "a" * 63, "A" * 64, "../" * 21 + "x", "g" * 64, "0" * 64 + "\n"])
def test_what_is_no_digest_never_becomes_a_path(store: ArtifactStore, name: str) -> None:
    for ask in (store.get, store.path_of, store.read_bytes, store.manifest):
        with pytest.raises(InvalidInput, match="not a hex SHA-256"):
            ask(name)


def test_sizes_are_bounded_and_a_file_is_no_directory(store: ArtifactStore) -> None:
    stored = store.put_bytes(b"12345")
    with pytest.raises(InvalidInput, match="larger than 4 bytes"):
        store.read_bytes(stored.sha256, limit=4)
    with pytest.raises(InvalidInput, match="not a directory"):
        store.manifest(stored.sha256)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "a//b", "./a", ""])
def test_a_manifest_cannot_leave_its_directory(store: ArtifactStore, tmp_path: Path, path: str) -> None:
    inner = store.put_bytes(b"data")
    hostile = strict_json.canonical({"files": [{"path": path, "sha256": inner.sha256, "size": 4}]})
    with pytest.raises(InvalidInput, match="not a directory"):
        store.checkout(store.put_bytes(hostile).sha256, tmp_path / "out")


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_full_disk_leaves_nothing_behind(
    store: ArtifactStore, tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x" * 100)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    for put in (lambda: store.put_file(source), lambda: store.put_bytes(b"y")):
        with pytest.raises(OSError, match="No space left"):
            put()
    monkeypatch.undo()
    assert not _blobs(store)
    assert not _temporary(store)
    assert store.put_file(source).size == 100


def test_many_writers_of_one_artifact(store: ArtifactStore) -> None:
    data = os.urandom(100_000)
    with ThreadPoolExecutor(8) as threads:
        stored = set(threads.map(store.put_bytes, [data] * 40))
    assert len(stored) == len(_blobs(store)) == 1
    assert not _temporary(store)
