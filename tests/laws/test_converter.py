"""The converter comes out of a pinned archive or not at all, and only its own plain files come out."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from ledger.errors import ArtifactMismatch, InvalidInput, MissingCapability
from quantizer import converter

ROOT = "llama_cpp_python-1.2.3/vendor/llama.cpp"
GOOD = {
    f"{ROOT}/convert_hf_to_gguf.py": b"print('convert')\n",
    f"{ROOT}/convert_lora_to_gguf.py": b"print('lora')\n",
    f"{ROOT}/conversion/base.py": b"BASE = 1\n",
    f"{ROOT}/gguf-py/gguf/__init__.py": b"GGUF = 1\n",
    f"{ROOT}/LICENSE": b"MIT\n",
    f"{ROOT}/src/llama.cpp": b"int main;\n",
    "llama_cpp_python-1.2.3/PKG-INFO": b"Name: llama_cpp_python\n",
}


def archive(path: Path, files: dict[str, bytes], extra: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if extra:
            tar.addfile(extra)
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A good archive whose hash is pinned as that of the installed version; answers its path."""
    path = archive(tmp_path / "source.tar.gz", GOOD)
    monkeypatch.delenv(converter.ARCHIVE_VARIABLE, raising=False)
    monkeypatch.setattr(converter, "installed_version", lambda: "1.2.3")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(converter, "ARCHIVE_SHA256", {"1.2.3": digest})
    return path


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_the_converter_leaves_the_archive(installed: Path, tmp_path: Path) -> None:
    folder = converter.ensure_converter(tmp_path / "cache", installed)
    assert folder == tmp_path / "cache" / "llama.cpp-1.2.3"
    assert files_below(folder) == {
        "convert_hf_to_gguf.py",
        "convert_lora_to_gguf.py",
        "conversion/base.py",
        "gguf-py/gguf/__init__.py",
        "LICENSE",
    }
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "temporary files remain"


def test_the_cache_is_reused_without_an_archive(installed: Path, tmp_path: Path) -> None:
    first = converter.ensure_converter(tmp_path / "cache", installed)
    installed.unlink()
    assert converter.ensure_converter(tmp_path / "cache") == first


def test_an_archive_dropped_into_the_cache_or_named_in_the_environment_is_used(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = tmp_path / "one" / "llama_cpp_python-1.2.3.tar.gz"
    dropped.parent.mkdir()
    dropped.write_bytes(installed.read_bytes())
    assert converter.ensure_converter(tmp_path / "one").is_dir()
    monkeypatch.setenv(converter.ARCHIVE_VARIABLE, str(installed))
    assert converter.ensure_converter(tmp_path / "two").is_dir()


def test_one_changed_byte_is_refused_and_nothing_is_unpacked(installed: Path, tmp_path: Path) -> None:
    data = bytearray(installed.read_bytes())
    data[len(data) // 2] ^= 1
    installed.write_bytes(data)
    with pytest.raises(ArtifactMismatch, match="pinned"):
        converter.ensure_converter(tmp_path / "cache", installed)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unpinned_version_is_refused(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "installed_version", lambda: "9.9.9")
    with pytest.raises(MissingCapability, match=r"9\.9\.9"):
        converter.ensure_converter(tmp_path / "cache", installed)


def test_without_an_index_the_refusal_says_where_to_put_the_archive(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MissingCapability, match=r"put llama_cpp_python-1\.2\.3\.tar\.gz at .*cache"):
        converter.ensure_converter(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_pip_fetches_it_from_wherever_pip_is_configured_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the archive runs: its build backend is not installed and its setup would fail."""
    name = "llama_cpp_python-1.2.3"
    packaged = GOOD | {
        f"{name}/PKG-INFO": b"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 1.2.3\n",
        f"{name}/setup.py": b"raise SystemExit('the archive was executed')\n",
        f"{name}/pyproject.toml": b'[build-system]\nrequires = ["scikit-build-core"]\n'
        b'build-backend = "scikit_build_core.build"\n',
    }
    links = tmp_path / "links"
    links.mkdir()
    path = archive(links / f"{name}.tar.gz", packaged)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.delenv(converter.ARCHIVE_VARIABLE, raising=False)
    monkeypatch.setattr(converter, "installed_version", lambda: "1.2.3")
    monkeypatch.setattr(converter, "ARCHIVE_SHA256", {"1.2.3": digest})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert (converter.ensure_converter(tmp_path / "cache") / "conversion" / "base.py").is_file()


@pytest.mark.parametrize(
    "name",
    [f"{ROOT}/conversion/../../../../evil.py", "/etc/evil", f"{ROOT}/../../../evil", "..\\evil"],
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.tar.gz", GOOD | {name: b"evil"})
    with pytest.raises(InvalidInput, match="leaves its folder"):
        converter.extract(path, tmp_path / "out" / "converter")
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo(f"{ROOT}/conversion/link.py")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(InvalidInput, match="not a plain file"):
        converter.extract(archive(tmp_path / "a.tar.gz", GOOD, info), tmp_path / "out")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", {"other-1.0/README": b"hello"})
    with pytest.raises(InvalidInput, match="holds no"):
        converter.extract(path, tmp_path / "out")


def test_an_oversized_converter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "MAX_BYTES", 20)
    with pytest.raises(InvalidInput, match="more than"):
        converter.extract(archive(tmp_path / "a.tar.gz", GOOD), tmp_path / "out")
