"""Signing keys that never leave their place: hardware tokens and key services, through securesystemslib.

    key = "hsm:…"  "gcpkms:…"  "awskms:…"  "azurekms:…"  "hv:…"  "file2:/path/key.pem"

A URI says where the private key is (securesystemslib documents the forms), a PEM file which key it is. The key is ECDSA
P-256 or Ed25519 and signs as a key file does: its id, its signatures and its events look no different in the log. One
signature is made and verified before the signer is handed out, so a wrong key or a missing right is found at the start.

A token's PIN comes from the environment: MODELLEDGER_SECRET_PIN.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from ledger.envelope import PublicKey, is_signed, load_public_key
from ledger.errors import InvalidConfig, InvalidInput, MissingCapability, ModelLedgerError, Unreachable, UnsafeKeyFile

if TYPE_CHECKING:
    from securesystemslib.signer import Signer as Backend

MAX_PEM = 8 << 10  # bytes
SELF_TEST = b"modelledger.dev/self-test/v1\n"
# What has to be installed besides securesystemslib, by scheme; the others need nothing.
EXTRAS = {"hsm": "hsm", "gcpkms": "gcpkms", "awskms": "awskms", "azurekms": "azurekms", "hv": "vault", "tkey": "tkey"}


@dataclass(frozen=True)
class KmsSigner:
    """A key somewhere else. Signs one thing at a time: a token's session is not made for several threads."""

    uri: str
    public_key_der: bytes
    keyid: str
    backend: Backend
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def sign(self, data: bytes) -> bytes:
        """Raises Unreachable when the key's place does not answer, or refuses."""
        try:
            with self._lock:
                return bytes.fromhex(self.backend.sign(data).signature)
        except Exception as error:  # each service has errors of its own
            raise _told(self.uri, error) from None


def kms_signer(uri: str, public_key: Path) -> KmsSigner:
    """The signer at `uri`. Raises MissingCapability, InvalidConfig, UnsafeKeyFile, Unreachable."""
    try:
        from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signer, SSlibKey
    except ModuleNotFoundError as error:
        raise MissingCapability(
            f"key {uri}: {error.name} is not installed; run: pip install 'modelledger[kms]'"
        ) from None
    scheme = uri.partition(":")[0]
    if scheme not in SIGNER_FOR_URI_SCHEME:
        known = ", ".join(sorted(["file", *SIGNER_FOR_URI_SCHEME]))
        raise InvalidConfig(f"key {uri}: {scheme!r} is not a scheme; known are {known}")
    key = read_public_key(public_key)
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    keyid = hashlib.sha256(der).hexdigest()
    try:
        backend = Signer.from_priv_key_uri(uri, SSlibKey.from_crypto(key, keyid), _secret)
    except Exception as error:  # each service has errors of its own
        raise _told(uri, error) from None
    signer = KmsSigner(uri, der, keyid, backend)
    if not is_signed(key, signer.sign(SELF_TEST), SELF_TEST):
        raise UnsafeKeyFile(f"key {uri}: its signature does not verify with {public_key}: that is another key")
    return signer


def read_public_key(path: Path) -> PublicKey:
    """ECDSA P-256 or Ed25519 from a PEM file. Raises InvalidConfig, UnsafeKeyFile."""
    try:
        with path.open("rb") as file:
            key = load_pem_public_key(file.read(MAX_PEM))
        return load_public_key(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise InvalidConfig(
            f"{path}: cannot be read ({error.strerror}); the public key of a key service stands there, in PEM"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnsafeKeyFile(f"{path}: is not a public key in PEM: {error}") from None
    except InvalidInput as error:
        raise UnsafeKeyFile(f"{path}: {error.message}") from None


def _secret(name: str) -> str:
    variable = f"MODELLEDGER_SECRET_{re.sub('[^A-Za-z0-9]+', '_', name).upper()}"
    if variable not in os.environ:
        raise InvalidConfig(f"the key asks for {name!r}: set {variable}")
    return os.environ[variable]


def _told(uri: str, error: Exception) -> ModelLedgerError:
    """What another library raised, as an error of our tree."""
    from securesystemslib.exceptions import KeyMismatchError, UnsupportedLibraryError

    if isinstance(error, ModelLedgerError):
        return error
    if isinstance(error, UnsupportedLibraryError | ModuleNotFoundError):
        extra = EXTRAS.get(uri.partition(":")[0], "crypto")
        return MissingCapability(f"key {uri}: {error}; run: pip install 'securesystemslib[{extra}]'")
    if isinstance(error, KeyMismatchError):
        return UnsafeKeyFile(f"key {uri}: {error}")
    if isinstance(error, ValueError | FileNotFoundError | PermissionError):
        return InvalidConfig(f"key {uri}: {error}")
    return Unreachable(f"key {uri}: does not sign: {type(error).__name__}: {error}")
