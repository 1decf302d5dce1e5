"""Signing keys in files: made on first run with mode 0600, refused when others can read them.

Actors sign with ECDSA P-256 (Ed25519 accepted), the log with Ed25519. A `FileSigner` is one kind of
`ledger.envelope.Signer`, a key service (kms.py) another; a service's configuration says which:

    key = ""                        data/keys/<actor>.key, made on first run
    key = "file:/safe/trainer.key"  another file, made when it is not there
    key = "hsm:…"                   a token or key service; its public key is the file data/keys/<actor>.pem
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ledger.envelope import Signer
from ledger.errors import UnsafeKeyFile
from ledger.kit.artifacts import sync_directory

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, kw_only=True)
class Signing:
    """The field that a service's configuration has for the key it signs events with.

    key: empty, "file:PATH" or the URI of a key service
    """

    key: str = ""


@dataclass(frozen=True)
class FileSigner:
    """A private key held in memory, loaded from a file."""

    private_key: PrivateKey
    public_key_der: bytes
    keyid: str

    def sign(self, data: bytes) -> bytes:
        if isinstance(self.private_key, ed25519.Ed25519PrivateKey):
            return self.private_key.sign(data)
        return self.private_key.sign(data, ec.ECDSA(hashes.SHA256()))

    def public_key_pem(self) -> bytes:
        return self.private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def actor_signer(path: Path, *, ed25519: bool = False) -> FileSigner:
    """The actor key at `path` (PEM, PKCS #8), made when there is none: P-256, or Ed25519 when asked for."""
    return _signer(load_or_create(path, _ed25519 if ed25519 else _p256))


def open_signer(key: str, file: Path, public_key: Path | None = None) -> Signer:
    """The signer that `key` names (see above). Raises what kms.kms_signer raises."""
    if not key:
        return actor_signer(file)
    if key.startswith("file:"):
        return actor_signer(Path(key.removeprefix("file:")).expanduser())
    from ledger.kit.kms import kms_signer

    return kms_signer(key, public_key or file.with_suffix(".pem"))


def log_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """The log's Ed25519 key at `path`, made when there is none. Raises UnsafeKeyFile for another type."""
    key = load_or_create(path, _ed25519)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UnsafeKeyFile(f"{path} holds another type of key; logs and witnesses sign with Ed25519")
    return key


def load_or_create(path: Path, create: Callable[[], PrivateKey]) -> PrivateKey:
    """Read a private key file, or make one (0600, atomic, durable)."""
    if not path.exists():
        _write(path, create())
    return load(path)


def load(path: Path) -> PrivateKey:
    """Read a private key file. Raises UnsafeKeyFile when it is readable by others or is no usable key."""
    if path.stat().st_mode & 0o077:
        raise UnsafeKeyFile(f"{path} can be read by other users; run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UnsafeKeyFile(f"{path} is not an unencrypted PEM private key: {error}") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise UnsafeKeyFile(f"{path} holds another type of key; use ECDSA P-256 or Ed25519")


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _ed25519() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def _signer(key: PrivateKey) -> FileSigner:
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return FileSigner(key, der, hashlib.sha256(der).hexdigest())


def _write(path: Path, key: PrivateKey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    temporary = Path(name)
    with os.fdopen(descriptor, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):  # another process made the key meanwhile: that one counts
        os.link(temporary, path)
    temporary.unlink()
    sync_directory(path.parent)
