"""serving.toml: what is written is read back, what is wrong is named, and a bad edit changes nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.serving_config import (
    QUANTISATIONS,
    EngineSettings,
    ServedModel,
    Serving,
    ServingConfig,
    load,
    parse,
    render,
    toggle,
    write,
    write_toggle,
)
from ledger.errors import InvalidConfig, NotFound

GOOD = """
default = "acme/support"
[engine]
context = 512
[[models]]
name = "acme/support"
enabled = true
[[models]]
name = "base/tiny-1.5"
enabled = false
auto_load = true
quantisation = "F16"
"""

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}/[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
models = st.lists(
    st.builds(ServedModel, names, st.booleans(), st.booleans(), st.sampled_from(QUANTISATIONS)),
    max_size=6,
    unique_by=lambda model: model.name,
)


@st.composite
def servings(draw: st.DrawFn) -> Serving:
    listed = tuple(draw(models))
    enabled = [model.name for model in listed if model.enabled]
    engine = EngineSettings(context=draw(st.integers(16, 1 << 20)), slots=draw(st.integers(1, 64)))
    return Serving(draw(st.sampled_from(enabled)) if enabled else None, listed, engine)


@given(servings())
def test_what_is_rendered_is_read_back(serving: Serving) -> None:
    assert parse(render(serving).encode(), "serving.toml") == serving


@given(servings(), names, st.booleans())
def test_a_toggle_is_valid_touches_one_model_or_is_refused(serving: Serving, name: str, enabled: bool) -> None:
    try:
        changed = toggle(serving, name, enabled)
    except NotFound:
        assert not enabled
        assert name not in {model.name for model in serving.models}
        return
    except InvalidConfig:
        assert name == serving.default
        return
    assert parse(render(changed).encode(), "serving.toml") == changed
    others = [model for model in serving.models if model.name != name]
    assert [model for model in changed.models if model.name != name] == others
    assert (name in {model.name for model in changed.enabled()}) == enabled
    assert toggle(changed, name, enabled) == changed


@given(servings(), st.one_of(st.none(), names))
def test_a_name_is_served_exactly_if_it_is_enabled(serving: Serving, name: str | None) -> None:
    known = {model.name for model in serving.enabled()}
    wanted = serving.default if name is None else name
    if wanted in known:
        assert serving.served(name).name == wanted
    else:
        with pytest.raises(NotFound):
            serving.served(name)


def test_defaults_and_names_are_as_documented() -> None:
    serving = parse(GOOD.encode(), "serving.toml")
    assert serving.engine == EngineSettings(context=512)
    assert serving.models[0] == ServedModel("acme/support", True, False, "Q4_K_M")
    assert serving.served(None).name == "acme/support"
    with pytest.raises(NotFound):
        serving.served("base/tiny-1.5")
    assert parse(b"", "serving.toml") == Serving()


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("default = ", None, "not TOML"),
        ("default = 1" + "0" * 6_000, None, "not TOML"),
        ("a = 1", "a", "unknown field"),
        (GOOD.replace("enabled = false", "enabled = false\nenable = true"), "models[1].enable", "unknown field"),
        (GOOD.replace("context", "contxt"), "engine.contxt", "unknown field"),
        (GOOD.replace("512", "true"), "engine.context", "must be a whole number"),
        (GOOD.replace("512", "1e3"), "engine.context", "must be a whole number"),
        (GOOD.replace("512", "0"), "engine.context", "is not between"),
        (GOOD.replace("512", "99999999999999999999"), "engine.context", "is not between"),
        (GOOD.replace("enabled = true", "enabled = 1"), "models[0].enabled", "true or false"),
        (GOOD.replace("enabled = true", ""), "models[0].enabled", "is missing"),
        (GOOD.replace('name = "acme/support"', ""), "models[0].name", "is missing"),
        (GOOD.replace('name = "acme/support"', "name = 3"), "models[0].name", "must be a string"),
        (GOOD.replace('name = "acme/support"', 'name = "acme"'), "models[0].name", "org/model"),
        (GOOD.replace('name = "acme/support"', 'name = "../etc/passwd"'), "models[0].name", "org/model"),
        (GOOD.replace("base/tiny-1.5", "acme/support"), "models[1].name", "listed twice"),
        (GOOD.replace('"F16"', '"Q3_K_L"'), "models[1].quantisation", "is unknown"),
        (GOOD.replace('default = "acme/support"', 'default = "acme/other"'), "default", "not one of the models"),
        (GOOD.replace('default = "acme/support"', 'default = "base/tiny-1.5"'), "default", "not enabled"),
        (GOOD.replace('default = "acme/support"', ""), "default", "is missing"),
        (GOOD.replace('default = "acme/support"', "default = 1"), "default", "must be a string"),
        ("models = 1", "models", "[[models]]"),
        ("models = [1]", "models[0]", "must be a table"),
        ("engine = 1", "engine", "must be a table"),
    ],
)
def test_what_is_wrong_is_named(text: str, field: str | None, reason: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        parse(text.encode(), "etc/serving.toml")
    assert error.value.message.startswith("etc/serving.toml: ")
    assert reason in error.value.message
    assert error.value.metadata.get("field") == field
    assert (field or "") in error.value.message


@pytest.mark.parametrize("data", [b"\xff", b"a = " + b"[" * 100_000, b"#" * (2 << 20), b"", b"\n"])
def test_hostile_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "serving.toml"
    path.write_bytes(data)
    with pytest.raises(InvalidConfig):
        load(path)


def test_a_good_edit_holds_at_once_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "serving.toml"
    with pytest.raises(InvalidConfig, match="No such file"):
        ServingConfig(path)
    path.write_text(GOOD)
    config = ServingConfig(path)
    first = config.current()
    assert config.current() is first

    path.write_text(GOOD + "x = 1\n")
    assert config.current() is first
    assert config.problem
    assert "models[1].x" in config.problem.message

    path.write_text("")  # it is being written
    assert config.current() is first
    assert "is empty" in config.problem.message

    path.write_text(GOOD.replace("512", "1024"))
    assert config.current().engine.context == 1024
    assert config.problem is None

    path.unlink()
    assert config.current().engine.context == 1024
    assert config.problem
    path.write_text(GOOD)
    assert config.current() == first
    assert config.problem is None


def test_write_toggle_is_seen_by_a_running_config(tmp_path: Path) -> None:
    path = tmp_path / "serving.toml"
    path.write_text(GOOD)
    path.chmod(0o640)
    config = ServingConfig(path)
    write_toggle(path, "base/tiny-1.5", True)
    assert config.current().served("base/tiny-1.5").auto_load
    with pytest.raises(InvalidConfig, match="default"):
        write_toggle(path, "acme/support", False)
    with pytest.raises(NotFound):
        write_toggle(path, "acme/other", False)
    write_toggle(path, "base/tiny-1.5", False)
    write_toggle(path, "acme/support", False)
    assert config.current().default is None
    assert config.current().enabled() == ()
    write_toggle(path, "acme/new", True)
    assert config.current().served(None) == ServedModel("acme/new", True)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["serving.toml"]


def test_a_wrong_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "serving.toml"
    path.write_text("a = 1")
    with pytest.raises(InvalidConfig):
        write_toggle(path, "acme/support", True)
    assert path.read_text() == "a = 1"
    with pytest.raises(InvalidConfig):
        write(path, Serving(default="acme/support"))
    assert path.read_text() == "a = 1"
    assert os.listdir(tmp_path) == ["serving.toml"]


def test_toggles_at_the_same_time_do_not_undo_each_other(tmp_path: Path) -> None:
    path = tmp_path / "serving.toml"
    write(path, Serving())
    threads = [threading.Thread(target=write_toggle, args=(path, f"acme/m{n}", True)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {model.name for model in load(path).enabled()} == {f"acme/m{n}" for n in range(16)}
