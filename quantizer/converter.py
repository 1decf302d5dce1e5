"""llama.cpp's own converter, provisioned once: source archive -> hash check -> a cached folder.

The llama-cpp-python wheel has the library but not `convert_hf_to_gguf.py`; the source archive of the same
version has both, so converter and library always belong together. `ensure_converter` takes, in this order:

    the cached folder        <cache>/llama.cpp-<version>/
    a local archive          $MODELLEDGER_LLAMA_CPP_ARCHIVE, or <cache>/llama_cpp_python-<version>.tar.gz
    a download               by `pip download`, with this machine's index, proxy and certificate settings

Every archive must have the SHA-256 pinned below; only the converter, its `conversion` package and its
gguf-py leave it. `python -m quantizer.converter` does this ahead of time (~80 MB, once).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path, PurePosixPath

from ledger.errors import ArtifactMismatch, InvalidInput, MissingCapability, ModelLedgerError

ARCHIVE_SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""llama-cpp-python version -> SHA-256 of its source archive. A new version is added here, deliberately."""

CACHE_VARIABLE = "MODELLEDGER_CACHE"
ARCHIVE_VARIABLE = "MODELLEDGER_LLAMA_CPP_ARCHIVE"

MEMBERS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py", "LICENSE")
"""What is taken out of <archive>/vendor/llama.cpp/; the licence (MIT) travels with the code."""

MAX_FILES = 1_000
MAX_BYTES = 64 << 20
DOWNLOAD_SECONDS = 600

# `pip download` asks a source archive's build backend for metadata, which would install CMake tooling and
# run the package's build script. This stand-in answers with the metadata the archive already carries, so
# nothing of the archive is executed.
_BACKEND = '''\
"""Answers metadata requests from PKG-INFO; builds nothing."""
import pathlib, shutil

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    folder = pathlib.Path(directory, "llama_cpp_python-VERSION.dist-info")
    folder.mkdir()
    shutil.copyfile("PKG-INFO", folder / "METADATA")
    return folder.name

def build_wheel(*arguments, **options):
    raise RuntimeError("this backend builds nothing")
'''


def default_cache() -> Path:
    """$MODELLEDGER_CACHE, else ~/.cache/modelledger."""
    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured) if configured else Path.home() / ".cache" / "modelledger"


def installed_version() -> str:
    """Version of the installed llama-cpp-python. Raises MissingCapability when there is none."""
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        raise MissingCapability("llama-cpp-python is not installed; install this package's [quantizer] extra") from None


def ensure_converter(cache: Path | None = None, archive: Path | None = None) -> Path:
    """The folder that holds `convert_hf_to_gguf.py` for the installed llama-cpp-python, made if need be.

    Raises ArtifactMismatch for an archive that is not the pinned one and MissingCapability, saying what to
    do, when there is no archive and none can be downloaded.
    """
    cache = cache or default_cache()
    version = installed_version()
    folder = cache / f"llama.cpp-{version}"
    if folder.is_dir():
        return folder
    if version not in ARCHIVE_SHA256:
        raise MissingCapability(
            f"no source archive is pinned for llama-cpp-python {version}, only for "
            f"{', '.join(ARCHIVE_SHA256)}; install one of those"
        )
    cache.mkdir(parents=True, exist_ok=True)
    local = archive or _local_archive(cache, version)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".converter-") as work:
        source = local or _download(version, Path(work), cache)
        verify(source, ARCHIVE_SHA256[version])
        unpacked = extract(source, Path(work) / "unpacked")
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same bytes
                raise
    return folder


def verify(archive: Path, sha256: str) -> None:
    """Raises ArtifactMismatch unless the archive's bytes hash to `sha256`."""
    try:
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MissingCapability(f"{archive}: {error.strerror}; give a readable archive") from None
    if actual != sha256:
        raise ArtifactMismatch(
            f"{archive}: its bytes hash to {actual}, the pinned archive to {sha256}; remove it and fetch it again"
        )


def extract(archive: Path, target: Path) -> Path:
    """Lay MEMBERS out at `target` (made anew). Raises InvalidInput on anything but plain bounded files."""
    files = size = 0
    target.mkdir(parents=True)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            relative = _wanted(member.name)
            if relative is None or member.isdir():
                continue
            if not member.isreg():
                raise InvalidInput(f"{archive}: {member.name!r} is a link or a device, not a plain file")
            files, size = files + 1, size + member.size
            if files > MAX_FILES or size > MAX_BYTES:
                raise InvalidInput(f"{archive}: the converter has more than {MAX_FILES} files or {MAX_BYTES} bytes")
            content = tar.extractfile(member)
            assert content is not None  # noqa: S101 - true of every regular member
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)
    if not (target / MEMBERS[0]).is_file():
        raise InvalidInput(f"{archive}: holds no vendor/llama.cpp/{MEMBERS[0]}")
    return target


def _wanted(name: str) -> PurePosixPath | None:
    """The path below vendor/llama.cpp when it is one of MEMBERS. Raises InvalidInput on an escaping path."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise InvalidInput(f"the archive names {name!r}, which leaves its folder")
    if path.parts[1:3] == ("vendor", "llama.cpp") and path.parts[3:4] and path.parts[3] in MEMBERS:
        return PurePosixPath(*path.parts[3:])
    return None


def _archive_name(version: str) -> str:
    return f"llama_cpp_python-{version}.tar.gz"


def _local_archive(cache: Path, version: str) -> Path | None:
    configured = os.environ.get(ARCHIVE_VARIABLE)
    if configured:
        return Path(configured)
    dropped = cache / _archive_name(version)
    return dropped if dropped.is_file() else None


def _download(version: str, work: Path, cache: Path) -> Path:
    """Let pip fetch the archive: its hash check runs before it unpacks anything."""
    backend = work / "backend" / "scikit_build_core"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build.py").write_text(_BACKEND.replace("VERSION", version))
    requirement = work / "requirement.txt"
    requirement.write_text(f"llama-cpp-python=={version} --hash=sha256:{ARCHIVE_SHA256[version]}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    command = [*pip, "--no-build-isolation", "--no-cache-dir", "-r", str(requirement), "-d", str(work)]
    environment = {**os.environ, "PYTHONPATH": str(backend.parent), "PIP_NO_INPUT": "1"}
    advice = f"put {_archive_name(version)} at {cache} or name it in ${ARCHIVE_VARIABLE}, then try again"
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise MissingCapability(f"the download took more than {DOWNLOAD_SECONDS} s; {advice}") from None
    archive = work / _archive_name(version)
    if done.returncode or not archive.is_file():
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        detail = (errors or done.stderr.strip().splitlines() or ["no message"])[-1][:500]
        raise MissingCapability(
            f"pip could not download llama-cpp-python {version}'s source archive ({detail}); {advice}"
        )
    return archive


if __name__ == "__main__":
    try:
        print(ensure_converter())
    except ModelLedgerError as error:
        sys.exit(f"quantizer.converter: {error}")
