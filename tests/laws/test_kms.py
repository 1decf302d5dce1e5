"""Keys that are kept elsewhere: they sign as key files do, and what is wrong with them is told at the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner

from ledger import envelope
from ledger.errors import InvalidConfig, MissingCapability, Unreachable, UnsafeKeyFile
from ledger.kit import keys
from ledger.kit.kms import KmsSigner, kms_signer

KEYS = {"P-256": ec.generate_private_key(ec.SECP256R1()), "Ed25519": ed25519.Ed25519PrivateKey.generate()}


def _files(folder: Path, key: Any, public: Any = None) -> tuple[str, Path]:
    """The URI of a private key file, and the PEM file of its public key (or of another)."""
    private, pem = folder / "kms.key", folder / "kms.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    pem.write_bytes(
        (public or key)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return f"file2:{private}", pem


@pytest.mark.parametrize("kind", KEYS)
def test_it_signs_as_a_key_file_does(kind: str, tmp_path: Path) -> None:
    uri, pem = _files(tmp_path, KEYS[kind])
    signer = kms_signer(uri, pem)
    (tmp_path / "kms.key").chmod(0o600)
    file = keys.actor_signer(tmp_path / "kms.key")
    assert (signer.keyid, signer.public_key_der) == (file.keyid, file.public_key_der)
    entry = envelope.sign(b"payload", [signer])
    envelope.verify(envelope.parse(entry), signer.keyid, envelope.load_public_key(signer.public_key_der))


def test_a_configuration_names_where_the_key_is(tmp_path: Path) -> None:
    uri, _ = _files(tmp_path, KEYS["P-256"])
    assert isinstance(keys.open_signer(uri, tmp_path / "kms.key"), KmsSigner), "its public key is beside the file"
    made = keys.open_signer("", tmp_path / "trainer.key")
    assert keys.open_signer(f"file:{tmp_path}/trainer.key", tmp_path / "other.key").keyid == made.keyid


class _Elsewhere:
    """A key service that answers as it is told; the real ones need an account."""

    def __init__(self, sign: Any) -> None:
        self.sign = sign

    def from_priv_key_uri(self, *_: Any) -> _Elsewhere:
        return self


def _raising(error: Exception) -> Any:
    def sign(data: bytes) -> Any:
        raise error

    return sign


@pytest.mark.parametrize(
    ("sign", "raised", "said"),
    [
        (_raising(ConnectionError("no route")), Unreachable, "ConnectionError: no route"),
        (_raising(RuntimeError("AccessDenied")), Unreachable, "AccessDenied"),
        (CryptoSigner.generate_ecdsa().sign, UnsafeKeyFile, "another key"),
        (CryptoSigner.generate_ed25519().sign, UnsafeKeyFile, "another key"),
    ],
)
def test_what_it_does_not_sign_is_found_at_the_start(
    sign: Any, raised: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pem = _files(tmp_path, KEYS["P-256"])
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "elsewhere", _Elsewhere(sign))
    with pytest.raises(raised, match=said):
        kms_signer("elsewhere:1", pem)


def test_a_service_that_goes_away_later_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pem = _files(tmp_path, KEYS["P-256"])
    service = _Elsewhere(CryptoSigner(KEYS["P-256"]).sign)
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "elsewhere", service)
    signer = kms_signer("elsewhere:1", pem)
    service.sign = _raising(TimeoutError("30 s"))
    with pytest.raises(Unreachable, match="elsewhere:1"):
        envelope.sign(b"payload", [signer])


@pytest.mark.parametrize(
    ("scheme", "extra"), [("hsm:2", "hsm"), ("awskms:alias/x", "awskms"), ("gcpkms:projects/x", "gcpkms")]
)
def test_a_missing_library_is_named_with_what_to_install(scheme: str, extra: str, tmp_path: Path) -> None:
    _, pem = _files(tmp_path, KEYS["P-256"])
    with pytest.raises(MissingCapability, match=rf"pip install 'securesystemslib\[{extra}\]'"):
        kms_signer(scheme, pem)


def test_without_securesystemslib_the_extra_is_named(tmp_path: Path) -> None:
    _, pem = _files(tmp_path, KEYS["P-256"])
    code = (
        "import sys; sys.modules['securesystemslib'] = None\n"
        "from pathlib import Path; from ledger.errors import MissingCapability; from ledger.kit.kms import kms_signer\n"
        "try: kms_signer('file2:/x', Path(sys.argv[1]))\n"
        "except MissingCapability as error: sys.exit(0 if 'modelledger[kms]' in error.message else 1)"
    )
    subprocess.run([sys.executable, "-c", code, str(pem)], check=True, cwd=Path(__file__).parents[2])


def test_the_private_key_is_not_the_public_one(tmp_path: Path) -> None:
    uri, pem = _files(tmp_path, KEYS["P-256"], ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(UnsafeKeyFile, match="does not match"):
        kms_signer(uri, pem)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65_537, 2_048)])
def test_other_types_of_key_are_refused(key: Any, tmp_path: Path) -> None:
    uri, pem = _files(tmp_path, key)
    with pytest.raises(UnsafeKeyFile, match="P-256 or Ed25519"):
        kms_signer(uri, pem)


def test_what_is_misconfigured_is_named(tmp_path: Path) -> None:
    uri, pem = _files(tmp_path, KEYS["P-256"])
    with pytest.raises(InvalidConfig, match=r"'gpcmks' is not a scheme; known are .*file.*gcpkms"):
        kms_signer("gpcmks:x", pem)
    with pytest.raises(InvalidConfig, match=r"no\.pem: cannot be read"):
        kms_signer(uri, tmp_path / "no.pem")
    with pytest.raises(InvalidConfig, match="nowhere"):
        kms_signer("file2:/nowhere", pem)
    pem.write_text("not a key")
    with pytest.raises(UnsafeKeyFile, match="is not a public key in PEM"):
        kms_signer(uri, pem)


def test_a_pin_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pem = _files(tmp_path, KEYS["P-256"])
    asked: list[str] = []

    class Token(_Elsewhere):
        def from_priv_key_uri(self, uri: str, key: Any, secret: Any = None) -> _Elsewhere:
            asked.append(secret("pin"))
            return self

    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "token", Token(CryptoSigner(KEYS["P-256"]).sign))
    with pytest.raises(InvalidConfig, match="set MODELLEDGER_SECRET_PIN"):
        kms_signer("token:1", pem)
    monkeypatch.setenv("MODELLEDGER_SECRET_PIN", "1234")
    kms_signer("token:1", pem)
    assert asked == ["1234"]
