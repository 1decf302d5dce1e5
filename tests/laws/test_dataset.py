"""Datasets: every bad line is named, every good one counted, and nothing else happens to the data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.errors import InvalidDataset, NotFound
from trainer import dataset
from trainer.dataset import Example, Report, band, check, split


def write(folder: Path, *lines: Any) -> Path:
    """A file of these lines: bytes as they are, everything else as JSON."""
    file = folder / "data.jsonl"
    encoded = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    file.write_bytes(b"".join(line + b"\n" for line in encoded))
    return file


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"question {number}", "completion": f"answer {number}"}


def problem(report: Report, line: int) -> str:
    return next(str(problem) for problem in report.problems if problem.line == line)


def test_the_three_forms_become_the_same_example(tmp_path: Path) -> None:
    conversation = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for value, form in (
        ({"prompt": "q", "completion": "a", "id": 7}, "prompt_completion"),
        ({"instruction": "q", "input": "", "output": "a"}, "instruction"),
        ({"instruction": "q", "output": "a"}, "instruction"),
        ({"messages": conversation}, "messages"),
    ):
        report = check(write(tmp_path, value))
        assert report.examples == (Example((("user", "q"), ("assistant", "a")), 1),)
        assert report.forms == (form,)
    report = check(write(tmp_path, {"instruction": "Translate", "input": "Haus", "output": "house"}))
    assert report.examples[0].messages[0] == ("user", "Translate\n\nHaus")


def test_a_system_message_and_several_turns_are_kept(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    report = check(write(tmp_path, {"messages": [{"role": role, "content": text} for role, text in turns]}))
    assert report.examples[0].messages == tuple(turns)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{nonsense", "not JSON at character 1"),
        (b'{"prompt": "q", "prompt": "r", "completion": "a"}', "duplicate key 'prompt'"),
        (b'{"prompt": "q", "completion": NaN}', "NaN is not JSON"),
        (b'{"prompt": "\xff", "completion": "a"}', "not valid UTF-8"),
        (b'["prompt"]', "is not a JSON object, but list"),
        ({"prompt": "q"}, "completion: is missing"),
        ({"completion": "a"}, "prompt: is missing"),
        ({"prompt": "q", "completion": " \n"}, "completion: is empty"),
        ({"prompt": 3, "completion": "a"}, "prompt: must be text, is int"),
        ({"prompt": None, "completion": "a"}, "prompt: must be text, is NoneType"),
        (b'{"prompt": "\\ud800", "completion": "a"}', "half of a surrogate pair"),
        ({"question": "q", "reply": "a"}, "none of the known forms"),
        ({"prompt": "q", "completion": "a", "messages": []}, "mixes the forms prompt_completion and messages"),
        ({"instruction": "q", "input": 1, "output": "a"}, "input: must be text"),
        ({"instruction": "q"}, "output: is missing"),
        ({"messages": []}, "messages: must be a list of at least two"),
        ({"messages": [1, 2]}, "messages[0]: must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}] * 2}, "messages[0].role: is 'tool'"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "must alternate user and assistant"),
        ({"messages": [{"role": "system", "content": "x"}] * 2}, "must alternate user and assistant"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]},
            "messages[1].content: is empty",
        ),
    ],
)
def test_a_bad_line_is_named_by_number_and_field(tmp_path: Path, line: Any, expected: str) -> None:
    report = check(write(tmp_path, pair(1), line, pair(3)))
    assert [example.line for example in report.examples] == [1, 3]
    assert report.refused_lines == 1
    assert problem(report, 2).startswith("line 2: ")
    assert expected in problem(report, 2)


def test_a_duplicate_names_the_first_even_in_another_form(tmp_path: Path) -> None:
    other = {"instruction": "question 1", "output": "answer 1"}
    report = check(write(tmp_path, pair(1), pair(2), pair(1), other))
    assert problem(report, 3) == "line 3: duplicate of line 1"
    assert problem(report, 4) == "line 4: duplicate of line 1"
    assert len(report.examples) == 2


def test_a_line_over_the_limit_is_skipped_whole(tmp_path: Path) -> None:
    report = check(write(tmp_path, pair(1), {"prompt": "x" * 500, "completion": "y"}, pair(3)), max_line_bytes=200)
    assert [example.line for example in report.examples] == [1, 3]
    assert "the limit of a line is 200" in problem(report, 2)


def test_blank_lines_count_in_the_numbering_only(tmp_path: Path) -> None:
    report = check(write(tmp_path, pair(1), b"", b"  ", pair(4)))
    assert [example.line for example in report.examples] == [1, 4]
    assert report.refused_lines == 0


def test_a_last_line_without_newline_counts(tmp_path: Path) -> None:
    file = write(tmp_path, pair(1), pair(2))
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert len(check(file).examples) == 2


def test_digest_and_size_are_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, pair(1), b"x" * 5000, pair(2))
    report = check(file, max_line_bytes=1000)
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert report.size == file.stat().st_size


def test_mixed_forms_are_listed(tmp_path: Path) -> None:
    report = check(write(tmp_path, {"instruction": "q", "output": "a"}, pair(1)))
    assert report.forms == ("instruction", "prompt_completion")


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        check(tmp_path / "absent.jsonl")
    with pytest.raises(InvalidDataset, match="empty"):
        check(write(tmp_path))
    with pytest.raises(InvalidDataset, match="empty"):
        check(write(tmp_path, b"", b""))
    with pytest.raises(InvalidDataset, match="the limit is 10"):
        check(write(tmp_path, pair(1)), max_bytes=10)


def test_refusals_call_the_dataset_by_its_name_and_not_by_its_path(tmp_path: Path) -> None:
    for refused in (tmp_path / "absent.jsonl", write(tmp_path)):
        with pytest.raises((InvalidDataset, NotFound)) as caught:
            check(refused, name="dataset faq")
        assert "dataset faq" in caught.value.message
        assert str(tmp_path) not in caught.value.message


def test_a_file_of_bad_lines_only_is_reported_and_not_ready(tmp_path: Path) -> None:
    report = check(write(tmp_path, *[b"x"] * (dataset.MAX_PROBLEMS + 5)))
    assert (len(report.examples), report.band) == (0, "not_ready")
    assert len(report.problems) == dataset.MAX_PROBLEMS
    assert report.refused_lines == dataset.MAX_PROBLEMS + 5


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        (0, "not_ready"),
        (49, "not_ready"),
        (50, "minimum"),
        (499, "minimum"),
        (500, "good"),
        (1999, "good"),
        (2000, "optimal"),
    ],
)
def test_readiness_bands(examples: int, expected: str) -> None:
    assert band(examples) == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_give_a_report_or_a_refusal(tmp_path: Path, lines: list[bytes]) -> None:
    file = tmp_path / "fuzz.jsonl"
    file.write_bytes(b"\n".join(lines))
    try:
        report = check(file)
    except InvalidDataset:
        assert not file.read_bytes().strip()
    else:
        assert len(report.examples) + report.refused_lines > 0


def examples(count: int) -> list[Example]:
    return [Example((("user", f"q{n}"), ("assistant", "a")), n + 1) for n in range(count)]


@given(st.integers(1, 200), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_a_split_loses_and_repeats_nothing(count: int, fraction: float, seed: int) -> None:
    training, held_out = split(examples(count), fraction, seed)
    assert sorted(e.line for e in training + held_out) == list(range(1, count + 1))
    assert training
    assert bool(held_out) == (fraction > 0 and count > 1)
    assert (training, held_out) == split(examples(count), fraction, seed)


def test_a_split_depends_on_the_seed() -> None:
    assert split(examples(100), 0.1, 1) != split(examples(100), 0.1, 2)
    assert len(split(examples(100), 0.1, 1)[1]) == 10


def test_a_reason_does_not_repeat_a_long_value(tmp_path: Path) -> None:
    long = "x" * 400_000
    messages = [{"role": long, "content": "q"}, {"role": "assistant", "content": "a"}]
    twice = f'{{"{long}": 1, "{long}": 2}}'.encode()
    report = check(write(tmp_path, {"messages": messages}, twice))
    assert report.refused_lines == 2
    assert all(len(problem.reason) < 200 for problem in report.problems)
