"""tlog-policy files: the specification's example, what is refused with its line, and what a quorum means."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.checkpoint import sign_checkpoint
from ledger.errors import InvalidConfig
from ledger.note import COSIGNATURE_V1, NoteError, Verifier, key_id
from ledger.trust_policy import MAX_DEFINED, MAX_FILE, TrustPolicy, Verdict, parse_trust_policy, read_trust_policy
from tests.databases import log_signer
from tests.witnesses import cosigner

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "policies.json").read_text())

LOG = log_signer()
W = [cosigner(number) for number in range(8)]
LINES = [f"witness W{number} {one.vkey()}\n".encode() for number, one in enumerate(W)]
EXAMPLE = b"".join(LINES[:6]) + (
    b"group X-witnesses 2 W0 W1 W2\ngroup Y-witnesses any W3 W4 W5\n"
    b"group X-and-Y all X-witnesses Y-witnesses\nquorum X-and-Y\n"
)


def judged(policy: TrustPolicy, *numbers: int) -> Verdict:
    return policy.judge_cosigners([W[number].verifier for number in numbers])


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["desc"])
def test_vectors(case: dict[str, Any]) -> None:
    data = case["policy"].encode("latin-1")
    if "error" in case:
        with pytest.raises(InvalidConfig, match=f"^line {case['line']}: ") as caught:
            parse_trust_policy(data)
        assert case["error"] in caught.value.message
        return
    policy = parse_trust_policy(data)
    for question in case["cases"]:
        note = question["note"].encode()
        if "error" in question:
            with pytest.raises(NoteError) as refused:
                policy.judge(note)
            assert refused.value.kind == question["error"]
        else:
            verdict = policy.judge(note)
            assert [verdict.satisfied, list(verdict.cosigned)] == [question["satisfied"], question["cosigned"]]


def test_the_specifications_example_means_what_it_says() -> None:
    policy = parse_trust_policy(EXAMPLE)
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(6), n) for n in range(7)):
        enough = len({0, 1, 2} & set(chosen)) >= 2 and len({3, 4, 5} & set(chosen)) >= 1
        verdict = judged(policy, *chosen)
        assert verdict.satisfied == enough
        assert verdict.cosigned == tuple(f"W{number}" for number in chosen)
        if not enough:
            assert verdict.missing
            assert not set(verdict.missing) & set(verdict.cosigned)
    assert judged(policy, 0, 4).missing == ("W1", "W2")
    assert judged(policy, 0, 1).missing == ("W3", "W4", "W5")
    assert judged(policy, 0, 1).detail == "X-and-Y is not met: cosigned by W0, W1; missing W3, W4, W5"


@given(st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)), st.integers(1, 8))
def test_one_more_cosignature_never_unmeets_a_quorum(some: set[int], more: set[int], threshold: int) -> None:
    names = b" ".join(b"W%d" % number for number in range(8))
    policy = parse_trust_policy(
        b"".join(LINES) + b"group all-of-them %d " % threshold + names + b"\nquorum all-of-them\n"
    )
    assert judged(policy, *some).satisfied == (len(some) >= threshold)
    assert judged(policy, *some | more).satisfied >= judged(policy, *some).satisfied
    missing = [int(name[1:]) for name in judged(policy, *some).missing]
    assert judged(policy, *some, *missing).satisfied, "with everybody who is missing it is met"


def test_a_note_is_judged_by_its_own_lines() -> None:
    policy = parse_trust_policy(LINES[0] + LINES[1] + b"group both all W0 W1\nquorum both\n")
    note = sign_checkpoint(LOG, 3, bytes(32))
    text = note.partition(b"\n\n")[0] + b"\n"
    one, two, stranger = W[0].cosign(text, 5), W[1].cosign(text, 6), W[2].cosign(text, 7)
    assert policy.judge(note + one + stranger + two).satisfied
    assert policy.judge(note + one + stranger).missing == ("W1",)
    assert policy.judge(note + one + one).missing == ("W1",)
    with pytest.raises(NoteError):
        policy.judge(note + one + W[1].cosign(text + b"more\n", 6))


def test_no_quorum_is_met_by_nothing() -> None:
    policy = parse_trust_policy(b"quorum none\n")
    assert policy.judge(sign_checkpoint(LOG, 3, bytes(32))).satisfied
    assert policy.logs == ()


def test_white_space_comments_and_opaque_octets() -> None:
    vkey = W[0].vkey().encode()
    data = b"# \xff\n\n \t \n\t log \t " + LOG.vkey().encode() + b"  http://log\t\n  # comment\n"
    data += b"witness \xe2\x84\xaa " + vkey + b" http://\xff\nquorum \xe2\x84\xaa\n"
    policy = parse_trust_policy(data)
    assert [(log.verifier, log.url) for log in policy.logs] == [(LOG.verifier, "http://log")]
    assert [witness.url for witness in policy.witnesses.values()] == ["http://\\xff"]
    with pytest.raises(InvalidConfig, match="line 2: 'K' is not the name"):
        parse_trust_policy(b"witness \xe2\x84\xaa " + vkey + b"\nquorum K\n")


@given(st.binary(max_size=80) | st.lists(st.sampled_from([*LINES, b"group g any W1\n", b"quorum W1\n"])).map(b"".join))
def test_any_bytes_are_a_policy_or_a_fault_with_its_line(data: bytes) -> None:
    try:
        policy = parse_trust_policy(data)
    except InvalidConfig as error:
        fault = error.message
    else:
        assert policy.quorum is None or policy.quorum in {*policy.witnesses, *policy.groups}
        return
    assert fault.startswith("line ")


def test_bounds() -> None:
    witnesses = [f"witness n{n} {cosigner_of(n)}\n" for n in range(MAX_DEFINED + 1)]
    groups = [f"group g{n} any n{n}\n" for n in range(MAX_DEFINED)]
    most = "".join(witnesses[:-1] + groups) + "quorum g255\n"
    assert len(parse_trust_policy(most.encode()).groups) == MAX_DEFINED
    with pytest.raises(InvalidConfig, match="line 257: more than 256 witnesses"):
        parse_trust_policy("".join(witnesses).encode())
    deep = [f"group d{n + 1} any d{n}\n" for n in range(255)]
    chain = LINES[0] + b"group d0 any W0\n" + "".join(deep).encode() + b"quorum d255\n"
    assert judged(parse_trust_policy(chain), 0).satisfied
    assert judged(parse_trust_policy(chain)).missing == ("W0",)
    with pytest.raises(InvalidConfig, match=f"at most {MAX_FILE} bytes"):
        parse_trust_policy(b"#" * MAX_FILE + b"\n")


def cosigner_of(number: int) -> str:
    """A verifier key that nobody can sign with."""
    public = number.to_bytes(32, "big")
    return Verifier("w", key_id("w", COSIGNATURE_V1, public), COSIGNATURE_V1, public).vkey()


def test_files_are_named_in_their_faults(tmp_path: Path) -> None:
    (tmp_path / "policy").write_bytes(EXAMPLE)
    assert read_trust_policy(tmp_path / "policy") == parse_trust_policy(EXAMPLE)
    (tmp_path / "wrong").write_bytes(b"quorum nobody\n")
    with pytest.raises(InvalidConfig, match="wrong: line 1: 'nobody'"):
        read_trust_policy(tmp_path / "wrong")
    (tmp_path / "large").write_bytes(b"#" * (MAX_FILE + 1))
    for name in ("absent", "large", "."):
        with pytest.raises(InvalidConfig, match=name):
            read_trust_policy(tmp_path / name)
