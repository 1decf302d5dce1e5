"""docker-compose.yml: what it says is what the services read. Keys by https://github.com/compose-spec/compose-spec."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.config import InferenceConfig
from ledger.config import LedgerConfig
from ledger.errors import InvalidConfig
from ledger.kit import config
from ledger.kit.serve import Address
from quantizer.config import QuantizerConfig
from trainer.config import TrainerConfig

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONFIGS: dict[str, Any] = {
    "ledger": LedgerConfig,
    "trainer": TrainerConfig,
    "quantizer": QuantizerConfig,
    "inference": InferenceConfig,
}

# The parts of the specification that the file uses; another key has to be looked up and added here.
TOP = {"services": dict, "volumes": dict}
SERVICE = {
    "build": str,
    "command": list,
    "depends_on": dict,
    "environment": dict,
    "healthcheck": dict,
    "image": str,
    "network_mode": str,
    "restart": str,
    "volumes": list,
}
HEALTHCHECK = {"test": list, "interval": str, "timeout": str, "retries": int}
DURATION = re.compile(r"[1-9][0-9]*s")
# ${NAME}, ${NAME:-default} and ${NAME:?message}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*)|:\?[^}]*)?\}")


def _check(found: dict[str, Any], known: dict[str, type]) -> None:
    for key, value in found.items():
        assert key in known
        assert isinstance(value, known[key]), key


def _section(name: str) -> Any:
    """The service's configuration as its container reads it."""
    environment = {key: VARIABLE.sub("secret", value) for key, value in SERVICES[name]["environment"].items()}
    return config.section(CONFIGS[name], name, {}, environment)


def test_the_file_has_the_structure_of_the_specification() -> None:
    _check({key: value for key, value in COMPOSE.items() if not key.startswith("x-")}, TOP)
    for service in SERVICES.values():
        _check(service, SERVICE)
        assert all(isinstance(value, str) for value in service["environment"].values())
        assert all(isinstance(part, str) for part in service["command"])
        assert service["restart"] in {"no", "always", "on-failure", "unless-stopped"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_health_check_and_waits_for_what_it_needs_to_be_healthy(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    _check(check, HEALTHCHECK)
    assert set(check) == set(HEALTHCHECK)
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert DURATION.fullmatch(check["interval"])
    assert DURATION.fullmatch(check["timeout"])
    needs = {"postgres": {}, "ledger": {"postgres"}}.get(name, {"ledger"})
    waits = SERVICES[name].get("depends_on", {})
    assert set(waits) == set(needs)
    assert all(wait == {"condition": "service_healthy"} for wait in waits.values())


@pytest.mark.parametrize("name", SERVICES)
def test_volumes_that_are_used_are_declared_or_are_folders_of_the_host(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        source, target, *mode = VARIABLE.sub(lambda found: found[2], volume).split(":")
        assert source in COMPOSE["volumes"] or source.startswith("./")
        assert target.startswith("/")
        assert mode in ([], ["ro"])


def test_the_four_services_and_their_database_are_there() -> None:
    assert set(SERVICES) == {"postgres", *CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_service_is_started_with_its_own_module_and_asked_at_its_own_address(name: str) -> None:
    assert SERVICES[name]["command"] == ["python", "-m", name]
    assert importlib.util.find_spec(f"{name}.__main__")
    probe = SERVICES[name]["healthcheck"]["test"]
    assert probe[:3] == ["CMD", "python", "-m"]
    assert importlib.util.find_spec(probe[3])
    assert probe[4] == _section(name).listen


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variable_is_a_field_of_the_service(name: str) -> None:
    assert all(key.startswith(f"MODELLEDGER_{name.upper()}_") for key in SERVICES[name]["environment"])
    settings = _section(name)
    settings.address().check()
    assert settings.data == Path("/data")
    assert f"{settings.data}" in {volume.split(":")[1] for volume in SERVICES[name]["volumes"]}
    if name != "ledger":
        assert settings.ledger == _section("ledger").listen


def test_no_two_listen_on_the_same_port() -> None:
    settings = [_section(name) for name in CONFIGS]
    addresses = [one.listen for one in settings] + [one.http for one in settings if hasattr(one, "http")]
    ports = [Address.parse(address, "address").port for address in addresses] + [
        int(SERVICES["postgres"]["environment"]["PGPORT"])
    ]
    assert len(set(ports)) == len(ports) == 7


def test_the_ledger_uses_the_database_that_is_there() -> None:
    given = SERVICES["postgres"]["environment"]
    user, database, port = given["POSTGRES_USER"], given["POSTGRES_DB"], given["PGPORT"]
    wanted = f"postgresql+psycopg://{user}:secret@127.0.0.1:{port}/{database}"
    assert _section("ledger").database_url == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_a_misspelt_variable_is_refused_by_name(name: str) -> None:
    variable = f"MODELLEDGER_{name.upper()}_LISTN"
    with pytest.raises(InvalidConfig, match=f"environment: {variable}: unknown field"):
        config.section(CONFIGS[name], name, {}, {variable: "127.0.0.1:1"})
    # Where the command line finds a service is no field of the service.
    config.section(CONFIGS[name], name, {}, {f"MODELLEDGER_{name.upper()}": "127.0.0.1:1", "MODELLEDGER_CACHE": "/x"})
