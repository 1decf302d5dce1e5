"""Services that run while keys change: the old key is refused, and the next start picks the new one up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from modelledger.client import Client
from modelledger.trainer.v1 import trainer_pb2

from ledger.errors import InvalidConfig, MissingCapability, OtherLog, RevokedActor, UnknownActor
from ledger.kit.keys import actor_signer
from ledger.kit.kms import kms_signer
from tests.audit import verify_whole_log
from tests.house import House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "data")
    yield house
    verify_whole_log(house.part("ledger").store)
    house.close()


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.addresses["ledger"], trainer=house.addresses["trainer"]) as client:
        yield client


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A dataset file; registering it is an event that the trainer signs."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt":"question {n}","completion":"answer {n}"}}\n' for n in range(60)))
    return path


def register(client: Client, rows: Path, name: str) -> trainer_pb2.CheckDatasetResponse:
    return client.check_dataset(rows, org="acme", name=name, register=True)


def actor(client: Client, name: str) -> object:
    return next(one for one in client.actors() if one.name == f"actors/{name}")


def pem(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """The two files of a key that a key service would keep: `path`, and its public half beside it."""
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.with_suffix(".pem").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_a_running_service_is_refused_until_it_starts_with_its_new_key(
    house: House, client: Client, rows: Path
) -> None:
    register(client, rows, "before")
    keys = house.data / "keys"
    new = actor_signer(keys / "next.key", ed25519=True)
    rotated = client.rotate_actor_key(actor(client, "trainer"), new, "yearly")
    index = rotated.keys[-1].enrolled_index
    with pytest.raises(RevokedActor, match=f"'trainer' was revoked or replaced at index {index}"):
        register(client, rows, "refused")
    (keys / "next.key").rename(keys / "trainer.key")
    house.restart("trainer")
    assert register(client, rows, "after").event_index == index + 1
    house.restart("ledger")
    register(client, rows, "later")


def test_a_service_signs_with_a_key_service(house: House, client: Client, rows: Path, tmp_path: Path) -> None:
    key, keys = tmp_path / "elsewhere.key", house.data / "keys"
    pem(key, ec.generate_private_key(ec.SECP256R1()))
    signer = kms_signer(f"file2:{key}", key.with_suffix(".pem"))
    house.settings["trainer"] = {"key": f"file2:{key}"}
    key.with_suffix(".pem").rename(keys / "trainer.pem")
    house.restart("trainer")
    with pytest.raises(UnknownActor):
        register(client, rows, "too-early")
    client.rotate_actor_key(actor(client, "trainer"), signer, "moved to a key service")
    register(client, rows, "signed-elsewhere")
    # The old key file is not needed any more: neither by the trainer nor by the ledger.
    (keys / "trainer.key").unlink()
    house.restart("ledger")
    register(client, rows, "after-a-restart")


def test_the_ledgers_own_actors_keys_can_be_elsewhere(house: House, client: Client, rows: Path, tmp_path: Path) -> None:
    key = tmp_path / "registry.key"
    pem(key, ec.generate_private_key(ec.SECP256R1()))
    house.settings["ledger"] = {"registry_key": f"file2:{key}"}
    house.stop("ledger")
    with pytest.raises(InvalidConfig, match=r"registry\.pem"):  # its public key is not there yet
        house.start("ledger")
    key.with_suffix(".pem").rename(house.data / "keys" / "registry.pem")
    with pytest.raises(OtherLog, match="'registry' is not the key enrolled"):  # rotate first
        house.start("ledger")
    house.settings["ledger"] = {}
    house.start("ledger")
    signer = kms_signer(f"file2:{key}", house.data / "keys" / "registry.pem")
    client.rotate_actor_key(actor(client, "registry"), signer, "moved to a key service")
    house.settings["ledger"] = {"registry_key": f"file2:{key}"}
    house.restart("ledger")
    register(client, rows, "later")


def test_a_key_service_that_is_not_installed_stops_the_start(house: House, tmp_path: Path) -> None:
    pem(tmp_path / "k.key", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "k.pem").rename(house.data / "keys" / "trainer.pem")
    house.settings["trainer"] = {"key": "hsm:2"}
    house.stop("trainer")
    with pytest.raises(MissingCapability, match=r"securesystemslib\[hsm\]"):
        house.start("trainer")
