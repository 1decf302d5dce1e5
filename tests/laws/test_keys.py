"""Key files: made once and privately, read back the same, refused when they are not safe or not fit."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ledger import envelope
from ledger.errors import UnsafeKeyFile
from ledger.kit import keys


def _save(path: Path, key: keys.PrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> Path:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    path.chmod(0o600)
    return path


def test_a_key_is_made_once_private_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "trainer.key"
    first = keys.actor_signer(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["trainer.key"], "no temporary file stays"
    assert keys.actor_signer(path).keyid == first.keyid


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()])
def test_what_it_signs_verifies_under_its_keyid(tmp_path: Path, key: keys.PrivateKey) -> None:
    signer = keys.actor_signer(_save(tmp_path / "k", key))
    parsed = envelope.parse(envelope.sign(b"payload", [signer]))
    public = envelope.load_public_key(signer.public_key_der)
    assert envelope.key_id(public) == signer.keyid
    envelope.verify(parsed, signer.keyid, public)
    pem = serialization.load_pem_public_key(signer.public_key_pem())
    assert pem == public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k"
    keys.actor_signer(path)
    path.chmod(mode)
    with pytest.raises(UnsafeKeyFile, match=f"chmod 600 {path}"):
        keys.actor_signer(path)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65_537, 2_048)], ids=["P-384", "RSA"]
)
def test_other_types_of_key_are_refused(tmp_path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    with pytest.raises(UnsafeKeyFile, match="P-256 or Ed25519"):
        keys.actor_signer(_save(tmp_path / "k", key))


def test_the_log_signs_with_ed25519_only(tmp_path: Path) -> None:
    with pytest.raises(UnsafeKeyFile, match="sign with Ed25519"):
        keys.log_key(_save(tmp_path / "k", ec.generate_private_key(ec.SECP256R1())))
    made = keys.log_key(tmp_path / "log.key")
    assert keys.log_key(tmp_path / "log.key").private_bytes_raw() == made.private_bytes_raw()


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UnsafeKeyFile, match="not an unencrypted PEM private key"):
        keys.actor_signer(path)
    assert path.read_bytes() == content


def test_an_encrypted_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeKeyFile, match="unencrypted"):
        keys.actor_signer(_save(tmp_path / "k", ec.generate_private_key(ec.SECP256R1()), b"secret"))


def test_many_starters_agree_on_one_key(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        found.append(keys.actor_signer(tmp_path / "k").keyid)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["k"]


def test_a_crash_while_a_key_was_made_does_not_stop_the_next_start(tmp_path: Path) -> None:
    """In a container the next process often has the same number as the one that was killed."""
    (tmp_path / f".k.{os.getpid()}").write_bytes(b"half a key")
    assert keys.actor_signer(tmp_path / "k").keyid
