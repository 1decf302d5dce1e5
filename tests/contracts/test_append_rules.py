"""Every append rule through the sequencer: one wrong thing, its reason and place, and nothing is written."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from ledger import envelope, statement
from ledger.errors import BY_REASON, ModelLedgerError
from ledger.events import KINDS
from ledger.statement import Artifact, Event
from tests.audit import verify_whole_log
from tests.databases import StoreFactory, shared_cluster, sqlite_factory
from tests.logs import ACTORS, Log, artifact, enrolment, ref, rotation, signed, signer

BASE, TWIN, ROWS = artifact("base-models/tiny"), artifact("base-models/other"), artifact("datasets/acme/faq")
GONE, ADAPTER = artifact("base-models/gone"), artifact("adapters/run1/tiny")
NOBODY = artifact("base-models/nobody")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    """One log for all refusals: none of them may change it."""
    if request.param == "sqlite":
        stores = sqlite_factory(tmp_path_factory.mktemp("rules"))
    else:
        stores = StoreFactory("postgresql", shared_cluster().new_url)
    log = Log(stores())
    log.append(log.base(), log.base("other"), log.base("gone"), log.dataset(), *log.training())
    log.append(log.sign("registry", "BaseModelWithdrawn", GONE.name, [GONE], {"key": "gone", "reason": "licence"}))
    log.append(signed(enrolment("left", signer(50), "trainer"), ACTORS["ledger"]))
    left = Artifact("actors/left", signer(50).keyid)
    log.append(log.sign("ledger", "ActorRevoked", left.name, [left], {"actor": "left", "reason": "left"}, version=2))
    yield log
    verify_whole_log(log.store)
    stores.close()


def refused(log: Log, entry: bytes, reason: str, place: str = "") -> ModelLedgerError:
    size = log.store.head.size
    with pytest.raises(BY_REASON[reason]) as caught:
        log.append(entry)
    assert type(caught.value) is BY_REASON[reason]
    found = [(v.field.removeprefix("envelopes[0]."), v.reason) for v in caught.value.violations]
    assert not place or (place, reason) in found, found
    assert log.store.head.size == size
    return caught.value


def dataset(name: str = "new", **changes: Any) -> Event:
    data = {"org": "acme", "name": name, "examples": 1, "band": "minimum"}
    subject = artifact(f"datasets/acme/{name}")
    event = Event("DatasetRegistered", f"datasets/acme/{name}", 1, "trainer", (subject,), data)
    return replace(event, **changes)


def completed(**changes: Any) -> Event:
    """A second run's completion: what it says about adapters and bases can go wrong in many ways."""
    new = artifact("adapters/run2/tiny")
    trained = {"key": "tiny", "baseSha256": BASE.sha256, "adapter": ref(new), "epochs": 1}
    event = Event(
        "TrainingCompleted",
        "training-runs/run2",
        1,
        "trainer",
        (new,),
        {"run": "run2", "trained": [trained], "datasetSha256": ROWS.sha256},
        (BASE, ROWS),
    )
    trained_changes = changes.pop("trained", {})
    event.data["trained"][0].update(trained_changes)
    return replace(event, **changes)


def version(**adapter: Any) -> Event:
    """A next version over the first run's adapter: what it says about bases and adapters can go wrong."""
    item = {"base": "tiny", "baseSha256": BASE.sha256, "chain": [ref(ADAPTER)], **adapter}
    said = {"org": "acme", "model": "other-bot", "major": 1, "run": "run1", "adapters": [item]}
    return Event("VersionCreated", "models/acme/other-bot", 1, "trainer", (ADAPTER,), said, (BASE, TWIN))


def requested(**changes: Any) -> Event:
    said = {"run": "run9", "org": "acme", "model": "bot", "bases": ["tiny"], "dataset": "acme/faq", **changes}
    document = artifact("requests/run9")
    return Event("TrainingRequested", "training-runs/run9", 1, "trainer", (document,), said, (BASE, ROWS))


def quantized(**data: Any) -> Event:
    file = artifact("gguf/q9/x.gguf")
    about = {"quantization": "q9", "org": "acme", "model": "bot", "base": "tiny"}
    said = {**about, "files": [{"type": "Q8_0", "file": ref(file)}], **data}
    return Event("QuantizationCompleted", "quantizations/q9", 1, "quantizer", (file,), said, (BASE, ADAPTER))


@pytest.mark.parametrize(
    ("event", "reason", "place"),
    [
        (dataset(kind="Gossip"), "UNKNOWN_KIND", "predicate.event.kind"),
        (dataset(kind="__class__"), "UNKNOWN_KIND", "predicate.event.kind"),
        (dataset(actor="registry"), "KIND_NOT_ALLOWED", "predicate.event.kind"),
        (dataset(stream="models/acme/new"), "MALFORMED_EVENT", "predicate.event.stream"),
        (dataset(stream="datasets", version=1), "MALFORMED_EVENT", "predicate.event.stream"),
        (dataset(version=2), "WRONG_STREAM_VERSION", "predicate.event.version"),
        (dataset("faq"), "WRONG_STREAM_VERSION", "predicate.event.version"),
        (dataset(subjects=(artifact("gguf/x"),)), "MALFORMED_EVENT", "subject[0]"),
        (dataset(subjects=(GONE._replace(name="datasets/acme/new"),)), "REVOKED_MATERIAL", "subject[0]"),
        (dataset(materials=(NOBODY,)), "UNKNOWN_MATERIAL", "predicate.materials[0]"),
        (dataset(materials=(BASE._replace(name=TWIN.name),)), "UNKNOWN_MATERIAL", "predicate.materials[0]"),
        (dataset(materials=(BASE, GONE)), "REVOKED_MATERIAL", "predicate.materials[1]"),
        (dataset(data={}), "MALFORMED_EVENT", "predicate.data.org"),
        (dataset(data={**dataset().data, "bogus": 1}), "MALFORMED_EVENT", "predicate.data"),
        (dataset(data={**dataset().data, "examples": "many"}), "MALFORMED_EVENT", "predicate.data"),
        (dataset(data={**dataset().data, "examples": 2**31}), "MALFORMED_EVENT", "predicate.data"),
        (completed(trained={"baseSha256": TWIN.sha256}), "UNKNOWN_MATERIAL", "predicate.data.trained[0].baseSha256"),
        (completed(trained={"baseSha256": ROWS.sha256}), "UNKNOWN_MATERIAL", "predicate.data.trained[0].baseSha256"),
        (completed(trained={"key": "other"}), "UNKNOWN_MATERIAL", "predicate.data.trained[0].baseSha256"),
        (completed(trained={"baseSha256": ""}), "MALFORMED_EVENT", "predicate.data.trained[0].baseSha256"),
        (completed(trained={"adapter": ref(ADAPTER)}), "UNKNOWN_MATERIAL", "predicate.data.trained[0].adapter.sha256"),
        (
            completed(trained={"adapter": {**ref(artifact("adapters/run2/tiny")), "name": "adapters/run2/x"}}),
            "UNKNOWN_MATERIAL",
            "predicate.data.trained[0].adapter.sha256",
        ),
        (version(base="other", baseSha256=TWIN.sha256), "UNKNOWN_MATERIAL", "predicate.data.adapters[0]"),
        (version(chain=[{"name": ADAPTER.name}]), "MALFORMED_EVENT", "predicate.data.adapters[0]"),
        (version(chain=[]), "MALFORMED_EVENT", "predicate.data.adapters[0]"),
        (requested(bases=["ghost"]), "UNKNOWN_MATERIAL", "predicate.data.bases[0]"),
        (requested(dataset="acme/ghost"), "UNKNOWN_MATERIAL", "predicate.data.dataset"),
        (requested(org="a\u2028b"), "MALFORMED_EVENT", "predicate.data.org"),
        (requested(model="m" * 129), "MALFORMED_EVENT", "predicate.data.model"),
        (requested(run="run8"), "MALFORMED_EVENT", "predicate.event.stream"),
        (quantized(base="other"), "UNKNOWN_MATERIAL", "predicate.data.base"),
        (quantized(licence=ref(NOBODY)), "UNKNOWN_MATERIAL", "predicate.data.licence.sha256"),
    ],
)
def test_refused(log: Log, event: Event, reason: str, place: str) -> None:
    refused(log, signed(event), reason, place)


def test_a_digest_is_found_under_both_spellings_of_its_field(log: Log) -> None:
    item = completed().data["trained"][0]
    item["base_sha256"] = TWIN.sha256
    del item["baseSha256"]
    event = completed(data={**completed().data, "trained": [item]})
    refused(log, signed(event), "UNKNOWN_MATERIAL", "predicate.data.trained[0].base_sha256")


def test_a_spoken_of_subject_must_be_known(log: Log) -> None:
    event = log.event("registry", "BaseModelWithdrawn", NOBODY.name, [NOBODY], {"key": "nobody", "reason": "x"})
    refused(log, signed(replace(event, version=1)), "UNKNOWN_MATERIAL", "subject[0]")


def test_what_is_revoked_is_not_revoked_again(log: Log) -> None:
    event = Event("BaseModelWithdrawn", GONE.name, 3, "registry", (GONE,), {"key": "gone", "reason": "x"})
    refused(log, signed(event), "REVOKED_MATERIAL", "subject[0]")


def test_a_stranger_s_nonsense_harms_nobody_else(log: Log) -> None:
    """Data of the wrong types is refused like any other, and another request of the same batch goes through."""
    subject = artifact("datasets/acme/nonsense")
    data = {"x": {"sha256": subject.sha256, "name": ["a"]}, "bases": {"a": 1}, "adapters": [[]], "trained": [1]}
    bad = signed(dataset("nonsense", data=data, subjects=(subject,)), signer(62))

    async def together() -> list[Any]:
        return await asyncio.gather(
            log.sequencer.append([bad]), log.sequencer.append([log.dataset("fine")]), return_exceptions=True
        )

    refusal, appended = asyncio.run(together())
    assert isinstance(refusal, ModelLedgerError)
    assert appended.indexes == (log.store.head.size - 1,)


# Actors and keys


def test_unknown_actor(log: Log) -> None:
    refused(log, signed(dataset(actor="stranger"), signer(60)), "UNKNOWN_ACTOR", "signatures")


def test_an_actor_cannot_speak_for_another(log: Log) -> None:
    refused(log, signed(dataset(), ACTORS["quantizer"]), "UNKNOWN_ACTOR", "predicate.event.actor")


def test_revoked_actor(log: Log) -> None:
    refused(log, signed(dataset(actor="left"), signer(50)), "REVOKED_ACTOR", "signatures")


def test_a_signature_of_other_bytes(log: Log) -> None:
    value = json.loads(signed(dataset()))
    value["payload"] = json.loads(signed(dataset()))["payload"]
    refused(log, json.dumps(value).encode(), "INVALID_SIGNATURE", "signatures")


def test_an_approver_signs_beside_the_author(log: Log) -> None:
    entry = signed(dataset("approved"), ACTORS["trainer"], ACTORS["registry"], signer(61))
    log.append(entry)


@pytest.mark.parametrize(
    ("event", "reason", "place"),
    [
        (enrolment("trainer", signer(70), "trainer", 2), "ALREADY_EXISTS", "predicate.data.actor"),
        (enrolment("new", ACTORS["trainer"], "trainer"), "ALREADY_EXISTS", "predicate.data.publicKey"),
        (enrolment("left", signer(50), "trainer", 3), "ALREADY_EXISTS", "predicate.data.publicKey"),
        (enrolment("new", signer(70), "emperor"), "MALFORMED_EVENT", "predicate.data.role"),
        (
            replace(enrolment("new", signer(70), "trainer"), subjects=(Artifact("actors/new", signer(71).keyid),)),
            "MALFORMED_EVENT",
            "subject",
        ),
        (
            replace(enrolment("new", signer(70), "trainer"), stream="actors/x"),
            "MALFORMED_EVENT",
            "predicate.event.stream",
        ),
        (replace(enrolment("new", signer(70), "trainer"), actor="trainer"), "KIND_NOT_ALLOWED", "predicate.event.kind"),
        (
            Event(
                "ActorRevoked",
                "actors/trainer",
                2,
                "ledger",
                (Artifact("actors/quantizer", ACTORS["quantizer"].keyid),),
                {"actor": "trainer", "reason": "x"},
            ),
            "MALFORMED_EVENT",
            "subject",
        ),
        (
            replace(enrolment("ledger", ACTORS["ledger"], "ledger"), kind="LogCreated", stream="log", version=2),
            "REFUSED",
            "predicate.event.kind",
        ),
    ],
)
def test_refused_key_events(log: Log, event: Event, reason: str, place: str) -> None:
    with pytest.raises(ModelLedgerError) as caught:
        log.append(signed(event))
    assert (f"envelopes[0].{place}", reason) in {(v.field, v.reason) for v in caught.value.violations}


@pytest.mark.parametrize("key", ["", "AAAA", "not base64", "bås64", base64.b64encode(b"\x00" * 91).decode()])
def test_what_is_no_key_is_not_enrolled(log: Log, key: str) -> None:
    event = enrolment("new", signer(70), "trainer")
    event = replace(event, data={**event.data, "publicKey": key})
    with pytest.raises(ModelLedgerError) as caught:
        log.append(signed(event))
    assert "envelopes[0].predicate.data.publicKey" in {v.field for v in caught.value.violations}


def test_a_rotated_key_takes_over_and_the_old_one_never_returns(log: Log) -> None:
    old, new = signer(80), signer(81)
    log.append(signed(enrolment("turner", old, "trainer")))
    (index,) = log.append(signed(rotation("turner", old, new, 2))).indexes
    event = dataset("turned", actor="turner")
    refusal = refused(log, signed(event, old), "REVOKED_ACTOR", "signatures")
    assert f"replaced at index {index}" in refusal.message
    log.append(signed(event, new))
    refused(log, signed(rotation("turner", new, old, 3)), "ALREADY_EXISTS")


# Form


def _entry_of(size: int) -> bytes:
    """A valid entry of exactly that many bytes; spaces after the JSON fill up what base64 leaves open."""
    event = dataset("large")
    entry = signed(replace(event, data={**event.data, "form": "x" * 48_300}))
    assert size - 400 < len(entry) < size
    return entry + b" " * (size - len(entry))


def test_an_entry_of_65536_bytes_is_too_large_and_one_byte_less_is_not(log: Log) -> None:
    refused(log, _entry_of(65_536), "EVENT_TOO_LARGE")
    entry = _entry_of(65_535)
    (index,) = log.append(entry).indexes
    assert log.store.get(index).entry == entry


def _resigned(change: Callable[[bytes], bytes]) -> bytes:
    return envelope.sign(change(statement.encode(dataset())), [ACTORS["trainer"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda payload: payload.replace(b'"examples":1', b'"examples":1,"examples":1'), "duplicate key"),
        (lambda payload: payload.replace(b'"examples":1', b'"examples":NaN'), "NaN is not JSON"),
        (lambda payload: payload.replace(b'"examples":1', b'"examples":1e999'), "too large"),
        (lambda payload: payload.replace(b"minimum", b"\xff\xfe"), "not valid UTF-8"),
        (lambda payload: payload + b"{}", "Extra data"),
        (lambda payload: payload + b"\x00", "Extra data"),
        (lambda payload: payload.replace(b'"examples":1', b'"examples":' + b"[" * 40 + b"]" * 40), "nested"),
    ],
)
def test_strict_json_in_the_payload(log: Log, change: Callable[[bytes], bytes], message: str) -> None:
    assert message in refused(log, _resigned(change), "MALFORMED_EVENT").message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry + b"{}", "Extra data"),
        (lambda entry: entry[:-1], "not JSON"),
        (lambda entry: b"\xef\xbb\xbf" + entry, "byte order mark"),
        (lambda entry: entry.replace(b'{"payload"', b'{"payload":"","payload"'), "duplicate key"),
        (lambda entry: entry.replace(b"vnd.in-toto+json", b"json"), "payloadType"),
        (lambda entry: entry.replace(b'"keyid"', b'"kid"'), "signatures[0]"),
        (lambda entry: b"\xff" + entry, "not valid UTF-8"),
        (lambda entry: b"", "not JSON"),
    ],
)
def test_strict_json_in_the_envelope(log: Log, change: Callable[[bytes], bytes], message: str) -> None:
    assert message in refused(log, change(signed(dataset())), "MALFORMED_EVENT").message


def test_every_kind_is_refused_to_every_role_it_does_not_name(log: Log) -> None:
    for kind in KINDS.values():
        for role in set(ACTORS) - set(kind.roles):
            event = dataset(kind=kind.name, actor=role)
            with pytest.raises(ModelLedgerError) as caught:
                log.append(signed(event))
            assert "KIND_NOT_ALLOWED" in {violation.reason for violation in caught.value.violations}
