"""Signatures that helper processes verify: the same verdicts in the same order, whatever becomes of the helpers."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ledger import verifying
from ledger.envelope import MAX_ENTRY, pae
from ledger.kit.helper import MAX_UNANSWERED, Helper, answered
from ledger.kit.keys import actor_signer
from ledger.verifying import (
    PIECE,
    WORTH_SHARING,
    WORTH_SHARING_AMONG_MORE,
    AllCores,
    Check,
    verify_here,
)
from tests.pipe_room import leave_room_for


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> list[Check]:
    """Of three keys; a third of them wrong, in no order."""
    folder: Path = tmp_path_factory.mktemp("keys")
    signers = [actor_signer(folder / "one"), actor_signer(folder / "two"), actor_signer(folder / "three")]
    made, draw = [], random.Random(7)
    for number in range(40 * PIECE + 3):
        message, signer = pae("application/vnd.in-toto+json", b"event %d" % number), draw.choice(signers)
        signature = signer.sign(message)
        wrong = draw.choice(["", "", "", "", "message", "key", "signature"])
        key = signers[0] if wrong == "key" and signer is not signers[0] else signer
        made.append(
            (
                key.public_key_der,
                signature[:-1] if wrong == "signature" else signature,
                message + b"!" if wrong == "message" else message,
            )
        )
    return made


@pytest.fixture(params=[1, 3])
def cores(request: pytest.FixtureRequest) -> Iterator[AllCores]:
    """With helpers that are ready."""
    cores = AllCores(request.param)
    _start(cores)
    yield cores
    cores.close()


def _start(cores: AllCores) -> None:
    cores.start()
    for helper in cores.helpers:
        assert answered([helper], 30), "it starts"
        assert helper.ready


def _pids(cores: AllCores) -> list[int]:
    return [helper.process.pid for helper in cores.helpers]


LEAST = WORTH_SHARING_AMONG_MORE, WORTH_SHARING


@pytest.mark.parametrize("count", [0, 1, *(n + more for n in LEAST for more in (-1, 0, 1)), 40 * PIECE + 3])
def test_the_verdicts_are_those_of_one_process(cores: AllCores, checks: Sequence[Check], count: int) -> None:
    expected = verify_here(checks[:count])
    assert count < WORTH_SHARING or {True, False} == set(expected)
    assert cores(checks[:count])() == expected


def test_helpers_do_a_part(cores: AllCores, checks: Sequence[Check], monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[int] = []

    def counted(some: Sequence[Check]) -> list[bool]:
        here.append(len(some))
        return verify_here(some)

    monkeypatch.setattr(verifying, "verify_here", counted)
    assert cores(checks)() == verify_here(checks)
    assert 0 < sum(here) < len(checks)


def test_a_batch_is_begun_while_another_waits(
    cores: AllCores, checks: Sequence[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever begins with a second batch has something else to do before it: helpers get all of that one."""
    first, second, expected = checks[: 10 * PIECE], checks[10 * PIECE : 20 * PIECE + 3], verify_here(checks)
    here: list[Sequence[Check]] = []
    monkeypatch.setattr(verifying, "verify_here", lambda some: here.append(some) or verify_here(some))
    one, two = cores(first), cores(second)
    assert one() == expected[: len(first)]
    here.clear()
    assert two() == expected[len(first) : len(first) + len(second)]
    assert not here


def test_helpers_that_are_ended_between_lose_nothing(cores: AllCores, checks: Sequence[Check]) -> None:
    begun = [cores(checks[: 10 * PIECE]), cores(checks[10 * PIECE :])]
    assert all(helper.asked for helper in cores.helpers)
    cores.close()
    assert [verdict for verdicts in begun for verdict in verdicts()] == verify_here(checks)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_helpers_that_are_killed_between_lose_none_of_several_batches(
    cores: AllCores, checks: Sequence[Check], order: tuple[int, ...]
) -> None:
    batches = [checks[: 6 * PIECE], checks[3 * PIECE : 15 * PIECE], checks[20 * PIECE :]]
    begun = [cores(batch) for batch in batches]
    os.kill(_pids(cores)[0], signal.SIGKILL)
    for number in order:
        assert begun[number]() == verify_here(batches[number])
    assert all(not helper.asked for helper in cores.helpers)


def test_a_helper_that_is_killed_loses_nothing(cores: AllCores, checks: Sequence[Check]) -> None:
    expected = verify_here(checks)
    os.kill(_pids(cores)[0], signal.SIGKILL)
    assert cores(checks)() == expected
    for pid in _pids(cores):
        os.kill(pid, signal.SIGKILL)
    assert cores(checks)() == expected
    assert not cores.helpers, "the lost ones are let go"
    assert cores(checks)() == expected


def test_a_helper_that_does_not_answer_loses_nothing(
    cores: AllCores, checks: Sequence[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "PATIENCE", 0.2)
    stopped = _pids(cores)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    assert cores(checks)() == verify_here(checks)
    assert not cores.helpers
    for pid in stopped:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_helper_that_answers_too_little_is_not_believed(
    cores: AllCores, checks: Sequence[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Helper.answers
    monkeypatch.setattr(Helper, "answers", lambda self: ((piece, found[1:]) for piece, found in answers(self)))
    assert cores(checks)() == verify_here(checks)
    assert not cores.helpers


def test_lost_helpers_are_replaced_after_a_rest(
    cores: AllCores, checks: Sequence[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = _pids(cores)
    for pid in lost:
        os.kill(pid, signal.SIGKILL)
    cores(checks)()
    monkeypatch.setattr(verifying, "REST", 0.0)
    _start(cores)
    assert cores(checks)() == verify_here(checks)
    assert len(cores.helpers) == len(lost)
    assert not set(_pids(cores)) & set(lost)


def test_helpers_that_there_is_no_room_for_are_done_without(
    checks: Sequence[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room_for(1, monkeypatch)
    monkeypatch.setattr(verifying, "REST", 0.0)
    cores = AllCores(3)
    _start(cores)
    opened = len(os.listdir("/proc/self/fd"))
    cores.start()
    assert len(cores.helpers) == 1
    assert len(os.listdir("/proc/self/fd")) == opened
    assert cores(checks)() == verify_here(checks)
    cores.close()


def test_pieces_of_the_largest_entries_go_through(cores: AllCores, tmp_path: Path) -> None:
    signer = actor_signer(tmp_path / "key")
    largest = [pae("application/vnd.in-toto+json", bytes([n]) * (MAX_ENTRY * 3 // 4)) for n in range(WORTH_SHARING)]
    several = [(signer.public_key_der, signer.sign(message), message) for message in largest]
    assert PIECE * len(largest[0]) < MAX_UNANSWERED
    for pid in _pids(cores):
        os.kill(pid, signal.SIGSTOP)  # asking must not wait for it
    verdicts = cores(several), cores(several)
    assert [len(helper.asked) for helper in cores.helpers] == [2] * len(cores.helpers), "a third one has no room"
    for pid in _pids(cores):
        os.kill(pid, signal.SIGCONT)
    for each in verdicts:
        assert each() == [True] * WORTH_SHARING


def test_nothing_of_the_folder_somebody_stands_in_is_run(
    checks: Sequence[Check], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('this is not the library')")
    monkeypatch.chdir(tmp_path)
    cores = AllCores(1)
    _start(cores)
    verdicts = cores(checks)
    assert cores.helpers[0].asked
    assert verdicts() == verify_here(checks)
    assert cores.helpers, "it was not lost"
    cores.close()
