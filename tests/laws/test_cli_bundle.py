"""Saving a bundle: what lands on disk."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelledger.bundle_download import save
from modelledger.ledger.v1 import certification_pb2

from ledger.errors import AlreadyExists, Damaged

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
