"""Trust files: everything that can be said is read, everything that is wrong is named."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import trust
from ledger.errors import InvalidConfig
from ledger.note import LogSigner
from ledger.trust import MAX_TRUST_FILE, Pin, Trust
from tests.databases import log_signer
from tests.logs import signer

VKEY = log_signer().vkey()
KEY, OTHER = signer(1).keyid, signer(2).keyid


def _file(folder: Path, text: str | bytes, name: str = "trust.toml") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    text = f"""
logs = ["{VKEY}"]   # ours
[[actors]]
name = "trainer"
keys = ["{KEY}", "{OTHER}"]
role = "trainer"
[[actors]]
name = "registry"
role = "registry"
[[compromised]]
key = "{KEY}"
from = 12
"""
    pins = {"trainer": Pin(frozenset({KEY, OTHER}), "trainer"), "registry": Pin(frozenset(), "registry")}
    assert trust.read(_file(tmp_path, text)) == Trust((VKEY,), pins, {KEY: 12})


def test_a_key_a_file_of_keys_and_several_add_up(tmp_path: Path) -> None:
    lines = _file(tmp_path, f"# ours\n\n  {VKEY}  \n", "log.vkey")
    first = _file(tmp_path, f'logs = ["{VKEY}"]\n[[compromised]]\nkey = "{KEY}"\nfrom = 9\n', "a.toml")
    second = _file(tmp_path, f'logs = ["{VKEY}"]\n[[compromised]]\nkey = "{KEY}"\nfrom = 5\n', "b.toml")
    assert trust.read(VKEY) == trust.read(lines) == Trust((VKEY,))
    for texts in ([first, second, lines], [VKEY, second, first]):
        assert trust.read_all(texts) == Trust((VKEY,), {}, {KEY: 5})


def test_two_files_that_pin_otherwise_are_refused(tmp_path: Path) -> None:
    head = f'logs = ["{VKEY}"]\n[[actors]]\nname = "trainer"\nrole = "trainer"\n'
    first = _file(tmp_path, head, "a.toml")
    second = _file(tmp_path, f'{head}keys = ["{KEY}"]\n', "b.toml")
    assert trust.read_all([first, first]).actors == {"trainer": Pin(role="trainer")}
    with pytest.raises(InvalidConfig, match="'trainer' is pinned otherwise"):
        trust.read_all([first, second])


HEAD = f'logs = ["{VKEY}"]\n'
ACTOR = f'{HEAD}[[actors]]\nname = "trainer"\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "holds no verifier key"),
        ("logs = []\n", "holds no verifier key"),
        ("logs = [\n", r"trust\.toml: .*at end of document"),
        ("logs = " + "[" * 9_000, "nested too deep"),
        (f"from = {'9' * 5_000}\n", "digits"),
        (f"{HEAD}x = 1\ny = = 2\n", r"trust\.toml: .*line 3"),
        ('logs = "x"\n', "logs: is not a list of texts"),
        ("logs = [1]\n", "logs: is not a list of texts"),
        (f'logs = ["{VKEY}", "x"]\n', r"logs\[1\]: "),
        (f'logs = ["{VKEY[:-4]}AAA="]\n', r"logs\[0\]: "),
        (f"{HEAD}log = 1\n", "log: unknown field; known are actors, compromised, logs"),
        (f"{HEAD}actors = 1\n", "actors: is not a list of tables"),
        (f'{HEAD}[actors]\nname = "a"\n', r"each begins with \[\[actors\]\]"),
        (f'{HEAD}[[actors]]\nrole = "trainer"\n', r"actors\[0\]\.name: is not a text"),
        (ACTOR, r"actors\[0\]: pins neither keys nor a role"),
        (f'{ACTOR}role = "emperor"\n', r"actors\[0\]\.role: 'emperor' is not one of"),
        (f"{ACTOR}role = 1\n", r"actors\[0\]\.role: is not a text"),
        (f'{ACTOR}keys = ["ab"]\n', r"actors\[0\]\.keys\[0\]: is not a key id"),
        (f'{ACTOR}keys = ["{KEY.upper()}"]\n', r"actors\[0\]\.keys\[0\]: is not a key id"),
        (f'{ACTOR}key = "{KEY}"\n', r"actors\[0\]: key: unknown field"),
        (f'{ACTOR}role = "trainer"\n[[actors]]\nname = "trainer"\nrole = "trainer"\n', r"actors\[1\]\.name: .*twice"),
        (f'{HEAD}[[compromised]]\nkey = "{KEY}"\n', r"compromised\[0\]\.from: is not the index"),
        (f'{HEAD}[[compromised]]\nkey = "{KEY}"\nfrom = -1\n', r"compromised\[0\]\.from: is not the index"),
        (f'{HEAD}[[compromised]]\nkey = "{KEY}"\nfrom = true\n', r"compromised\[0\]\.from: is not the index"),
        (f"{HEAD}[[compromised]]\nfrom = 1\n", r"compromised\[0\]\.key: is not a text"),
        (b"\xff", "is not UTF-8"),
        (b"#" * (MAX_TRUST_FILE + 1), "larger than"),
    ],
)
def test_what_is_wrong_is_named(text: str | bytes, named: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=named) as caught:
        trust.read(_file(tmp_path, text))
    assert "trust.toml" in caught.value.message


def test_a_key_may_be_longer_than_the_name_of_a_file() -> None:
    key = LogSigner("a" * 300, log_signer().private_key).vkey()
    assert trust.read(key) == Trust((key,))


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"log\.vkey: line 3: "):
        trust.read(_file(tmp_path, f"# ours\n{VKEY}\nnonsense\n", "log.vkey"))
    with pytest.raises(InvalidConfig, match="neither a verifier key nor a file"):
        trust.read("nowhere.toml")
    with pytest.raises(InvalidConfig, match="file that can be read"):
        trust.read(str(tmp_path))


@given(st.text(max_size=200))
def test_no_text_is_too_strange(text: str) -> None:
    with contextlib.suppress(InvalidConfig):
        trust._document(text, "x")
