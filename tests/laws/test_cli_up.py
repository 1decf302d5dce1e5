"""`modelledger up`: one process, four configurations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from modelledger.cli import up

from ledger.errors import InvalidConfig, Refused
from ledger.kit.config import read_file


def _configs(tmp_path: Path, text: str = "", data: Path | None = None, **environment: str) -> up.Configs:
    file = tmp_path / "modelledger.toml"
    file.write_text(text)
    return up.read_configs(file, data, (), environment)


def test_all_services_share_the_data_directory_and_the_ledgers_address(tmp_path: Path) -> None:
    configs = _configs(tmp_path, '[ledger]\nlisten = "127.0.0.1:6000"\n', tmp_path / "d")
    assert {c.data for c in (configs.ledger, configs.trainer, configs.quantizer, configs.inference)} == {tmp_path / "d"}
    assert {c.ledger for c in (configs.trainer, configs.quantizer, configs.inference)} == {"127.0.0.1:6000"}
    assert configs.trainer.bases == configs.quantizer.bases == (tmp_path / "d" / "base-models",)


def test_port_0_is_resolved_before_the_services_are_told(tmp_path: Path) -> None:
    configs = _configs(tmp_path, MODELLEDGER_LEDGER_LISTEN="127.0.0.1:0")
    assert not configs.ledger.listen.endswith(":0")
    assert configs.trainer.ledger == configs.ledger.listen


def test_a_service_keeps_what_its_section_names(tmp_path: Path) -> None:
    text = '[ledger]\ndata = "a"\nlisten = "[::1]:7"\n[trainer]\nledger = "ledger.example:1"\n'
    text += f'bases = ["{tmp_path}"]\n'
    configs = _configs(tmp_path, text, MODELLEDGER_INFERENCE_DATA="c")
    assert (configs.trainer.ledger, configs.trainer.data) == ("ledger.example:1", Path("a"))
    assert (configs.quantizer.ledger, configs.inference.data) == ("[::1]:7", Path("c"))
    assert configs.quantizer.bases == (tmp_path,)


def test_base_models_of_the_plain_environment_are_the_last_resort(tmp_path: Path) -> None:
    section = '[trainer]\nbase_models = "file"\n'
    both = {"MODELLEDGER_TRAINER_BASE_MODELS": "ours", "BASE_MODELS": "plain,other"}
    assert _configs(tmp_path, section, **both).trainer.base_models == "ours"
    assert _configs(tmp_path, section, BASE_MODELS="plain").trainer.base_models == "file"
    assert _configs(tmp_path, BASE_MODELS="plain,other").trainer.base_models == "plain,other"
    assert _configs(tmp_path, MODELLEDGER_TRAINER_BASE_MODELS="", BASE_MODELS="plain").trainer.base_models == "plain"
    assert _configs(tmp_path).trainer.base_models == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[traner]\n", "traner"),
        ("[ledger]\nlissten = 'x'\n", "lissten"),
        ("[ledger", "modelledger.toml"),
        ("[trainer]\nbases = ['/', '/no/such/folder']\n", r"\[trainer\] bases: /no/such/folder is no folder"),
        ("[quantizer]\nbases = ['/no/such/folder']\n", r"\[quantizer\] bases: /no/such/folder is no folder"),
    ],
)
def test_a_wrong_configuration_is_refused_with_file_and_field(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidConfig, match=named) as caught:
        _configs(tmp_path, text)
    assert "modelledger.toml" in caught.value.message
    with pytest.raises(InvalidConfig):
        read_file(tmp_path / "absent.toml")


def test_a_profile_that_there_is_not_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"\[trainer\] profile: 'zz' is not one of laptop, workstation"):
        _configs(tmp_path, "[trainer]\nprofile = 'zz'\n")


def test_two_on_one_data_directory_are_refused(tmp_path: Path) -> None:
    refused = pytest.raises(Refused, match=rf"in use by another modelledger \(process {os.getpid()}\)")
    with up._only_one(tmp_path / "data"), refused:
        up._only_one(tmp_path / "data").__enter__()
    with up._only_one(tmp_path / "data"):
        pass
