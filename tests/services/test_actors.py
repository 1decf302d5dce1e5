"""Actors over gRPC and the command line: enrolled, rotated and revoked by event, with who and why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from modelledger.cli import run
from modelledger.ledger.v1 import actors_pb2 as pb
from modelledger.ledger.v1 import actors_pb2_grpc, events_pb2
from modelledger.ledger.v1 import events_pb2 as events

from ledger import possession
from ledger.actors import ActorServicer
from ledger.errors import RevokedActor
from ledger.events import ROLES
from ledger.kit.interceptors import CallInterceptor
from ledger.kit.keys import FileSigner, actor_signer
from tests.audit import verify_whole_log
from tests.log_story import Story
from tests.logs import signer

WHO = (("modelledger-user", "bob"),)
Ask = Callable[..., Any]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


@asynccontextmanager
async def serving(story: Story, administrators: tuple[str, ...] = ()) -> AsyncIterator[tuple[Any, int]]:
    """A stub for the service over the story's log, and its port."""
    server = grpc.aio.server(interceptors=[CallInterceptor()])
    actors_pb2_grpc.add_ActorServiceServicer_to_server(
        ActorServicer(story.store, story.actor("ledger"), administrators), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield actors_pb2_grpc.ActorServiceStub(channel), port
    finally:
        await server.stop(None)


@pytest.fixture
def ask(story: Story) -> Ask:
    """Run a coroutine function that is given the stub; the whole log is verified afterwards."""

    def run(questions: Callable[[Any], Awaitable[Any]], administrators: tuple[str, ...] = ()) -> Any:
        async def main() -> Any:
            async with serving(story, administrators) as (stub, _):
                return await questions(stub)

        try:
            return asyncio.run(main())
        finally:
            verify_whole_log(story.store)

    return run


async def refusal(call: Awaitable[Any]) -> tuple[str, str, str]:
    """(code, reason, message) of the error a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info, status = error_details_pb2.ErrorInfo(), rpc_status.from_call(caught.value)
    assert status.details[0].Unpack(info)
    return caught.value.code().name, info.reason, str(caught.value.details())


def rotation(actor: str, old: Any, new: FileSigner, **fields: Any) -> pb.RotateActorKeyRequest:
    proof = possession.prove(actor, old.keyid, new)
    return pb.RotateActorKeyRequest(
        **{
            "name": f"actors/{actor}",
            "public_key": new.public_key_der,
            "possession": proof,
            "reason": "yearly",
            "request_id": "r1",
            **fields,
        }
    )


def enrolment(actor: str, new: FileSigner, **fields: Any) -> pb.EnrolActorRequest:
    proof = possession.prove(actor, "", new)
    return pb.EnrolActorRequest(
        **{
            "name": f"actors/{actor}",
            "role": "trainer",
            "public_key": new.public_key_der,
            "possession": proof,
            "request_id": "e1",
            **fields,
        }
    )


def test_the_founders_are_listed_page_by_page(story: Story, ask: Ask) -> None:
    async def questions(stub: Any) -> None:
        found, token = [], ""
        while True:
            page = await stub.ListActors(pb.ListActorsRequest(page_size=4, page_token=token))
            found += page.actors
            token = page.next_page_token
            if not token:
                break
        assert [actor.name for actor in found] == sorted(f"actors/{role}" for role in ROLES)
        assert all(actor.role == actor.name.removeprefix("actors/") and not actor.revoked for actor in found)
        (key,) = next(actor for actor in found if actor.role == "trainer").keys
        assert key.key_id == story.signers["trainer"].keyid
        assert key.algorithm == "ECDSA P-256"
        assert not key.HasField("retired_index")
        assert not key.HasField("compromised_from")
        assert (await refusal(stub.ListActors(pb.ListActorsRequest(page_token="?"))))[1] == "INVALID_INPUT"
        assert (await refusal(stub.ListActors(pb.ListActorsRequest(page_size=-1))))[0] == "INVALID_ARGUMENT"

    ask(questions)


def test_a_rotated_key_is_refused_and_the_new_one_signs(story: Story, ask: Ask, tmp_path: Path) -> None:
    new = actor_signer(tmp_path / "new.key", ed25519=True)
    size = story.store.head.size

    async def questions(stub: Any) -> pb.Actor:
        asked = rotation("trainer", story.signers["trainer"], new)
        actor = (await stub.RotateActorKey(asked, metadata=WHO)).actor
        assert (await stub.RotateActorKey(asked, metadata=WHO)).actor == actor, "asked again, answered again"
        assert story.store.head.size == size + 1
        other = rotation("trainer", story.signers["trainer"], new, reason="other")
        assert (await refusal(stub.RotateActorKey(other, metadata=WHO)))[1] == "EVENT_ID_REUSED"
        return actor

    actor = ask(questions)
    old, fresh = actor.keys
    assert (old.retired_index, old.reason, fresh.enrolled_index) == (size, "yearly", size)
    assert (fresh.key_id, fresh.algorithm) == (new.keyid, "Ed25519")
    with pytest.raises(RevokedActor, match=f"'trainer' was revoked or replaced at index {size}"):
        story.base("tiny")
    story.signers["trainer"] = new
    story.base("tiny")
    verify_whole_log(story.store)


def test_who_and_why_stand_in_the_log(story: Story, ask: Ask) -> None:
    async def questions(stub: Any) -> None:
        request = pb.RevokeActorRequest(name="actors/quantizer", reason="laptop stolen", compromised_from=6)
        actor = (await stub.RevokeActor(request, metadata=WHO)).actor
        assert actor.revoked
        assert actor.keys[0].compromised_from == 6
        again = await refusal(stub.RevokeActor(request, metadata=WHO))
        assert again[:2] == ("FAILED_PRECONDITION", "REFUSED")
        assert f"index {story.store.head.size - 1}" in again[2]

    ask(questions)
    from ledger.reading import read_event
    from ledger.schema import from_data

    row = story.store.get(story.store.head.size - 1)
    record: Any = from_data("ActorRevoked", read_event(row).data)
    assert record == events.ActorRevoked(
        actor="quantizer",
        reason="laptop stolen",
        compromised_from=6,
        caller=events_pb2.Caller(id="local:bob", method="loopback"),
    )


def test_a_revoked_actor_is_enrolled_again_with_a_new_key_only(story: Story, ask: Ask) -> None:
    async def questions(stub: Any) -> None:
        await stub.RevokeActor(pb.RevokeActorRequest(name="actors/trainer", reason="lost"))
        same = enrolment("trainer", story.signers["trainer"])
        assert (await refusal(stub.EnrolActor(same)))[1] == "REVOKED_MATERIAL"
        actor = (await stub.EnrolActor(enrolment("trainer", signer(70), request_id="e2"))).actor
        assert not actor.revoked
        assert [key.HasField("retired_index") for key in actor.keys] == [True, False]

    ask(questions)


@pytest.mark.parametrize(
    ("request_", "reason", "part"),
    [
        (enrolment("trainer", signer(70)), "ALREADY_EXISTS", "actors rotate trainer"),
        (enrolment("new", signer(70), role="emperor"), "INVALID_INPUT", "role"),
        (enrolment("new", signer(70), name="new"), "INVALID_NAME", "actors/{actor}"),
        (enrolment("new", signer(70), name="actors/a b"), "INVALID_NAME", "actors/{actor}"),
        (enrolment("new", signer(70), public_key=b"x"), "INVALID_INPUT", "public_key"),
        (enrolment("new", signer(70), possession=b""), "INVALID_SIGNATURE", "possession"),
        (enrolment("old", signer(70), name="actors/new"), "INVALID_SIGNATURE", "possession"),
        (enrolment("new", signer(70), request_id="x" * 1_001), "INVALID_INPUT", "request_id"),
        (rotation("trainer", signer(71), signer(70)), "INVALID_SIGNATURE", "in place of key"),
        (rotation("nobody", signer(71), signer(70)), "NOT_FOUND", "nobody"),
        (rotation("trainer", signer(71), signer(70), reason=" "), "INVALID_INPUT", "reason"),
        (rotation("trainer", signer(71), signer(70), compromised_from=-1), "INVALID_INPUT", "compromised_from"),
        (pb.RevokeActorRequest(name="actors/trainer"), "INVALID_INPUT", "reason"),
        (pb.RevokeActorRequest(name="actors/nobody", reason="x"), "NOT_FOUND", "nobody"),
        (pb.RevokeActorRequest(name="actors/ledger", reason="x"), "REFUSED", "rotated and never revoked"),
        (
            pb.RevokeActorRequest(name="actors/trainer", reason="x", compromised_from=1_000),
            "MALFORMED_EVENT",
            "1000 is not between",
        ),
        (
            pb.RevokeActorRequest(name="actors/trainer", reason="x", compromised_from=1),
            "MALFORMED_EVENT",
            "1 is not between the key's enrolment",
        ),
    ],
)
def test_refused(story: Story, ask: Ask, request_: Any, reason: str, part: str) -> None:
    methods = {"EnrolActorRequest": "EnrolActor", "RotateActorKeyRequest": "RotateActorKey"}

    async def questions(stub: Any) -> None:
        method = getattr(stub, methods.get(type(request_).__name__, "RevokeActor"))
        _, told, message = await refusal(method(request_))
        assert told == reason, message
        assert part in message

    size = story.store.head.size
    ask(questions)
    assert story.store.head.size == size


def test_the_certification_actor_needs_a_key_that_model_signatures_know(story: Story, ask: Ask, tmp_path: Path) -> None:
    new = actor_signer(tmp_path / "new.key", ed25519=True)

    async def questions(stub: Any) -> None:
        asked = rotation("certification", story.signers["certification"], new)
        _, reason, message = await refusal(stub.RotateActorKey(asked))
        assert reason == "INVALID_INPUT"
        assert "P-256" in message

    ask(questions)


def test_only_administrators_change_actors(story: Story, ask: Ask) -> None:
    async def questions(stub: Any) -> None:
        asked = enrolment("new", signer(70))
        assert (await refusal(stub.EnrolActor(asked, metadata=WHO)))[1] == "PERMISSION_DENIED"
        assert (await stub.ListActors(pb.ListActorsRequest(), metadata=WHO)).actors
        assert (await stub.EnrolActor(asked, metadata=(("modelledger-user", "eve"),))).actor.keys

    ask(questions, ("local:eve",))


def test_two_commands_at_once_are_both_recorded_or_refused_by_name(story: Story, ask: Ask) -> None:
    async def questions(stub: Any) -> None:
        first, second = signer(70), signer(72)
        answers = await asyncio.gather(
            stub.RotateActorKey(rotation("trainer", story.signers["trainer"], first, request_id="a")),
            stub.RotateActorKey(rotation("trainer", story.signers["trainer"], second, request_id="b")),
            return_exceptions=True,
        )
        # Whoever is second proved to replace a key that is not the present one any more.
        assert sorted(isinstance(answer, grpc.aio.AioRpcError) for answer in answers) == [False, True]

    ask(questions)


def test_rotating_the_ledgers_own_key_needs_a_restart(story: Story, ask: Ask) -> None:
    new = signer(70)

    async def questions(stub: Any) -> None:
        await stub.RotateActorKey(rotation("ledger", story.signers["ledger"], new))
        _, reason, message = await refusal(stub.EnrolActor(enrolment("new", signer(72))))
        assert reason == "REVOKED_ACTOR"
        assert f"index {story.store.head.size - 1}" in message

    ask(questions)
    story.signers["ledger"] = new
    ask(lambda stub: stub.EnrolActor(enrolment("new", signer(72))))


def test_the_command_line(story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "next" / "trainer.key"

    async def main() -> list[int]:
        async with serving(story) as (_, port):
            server = ["--server", f"127.0.0.1:{port}", "actors"]
            commands = [
                ["enrol", "second", "--role", "trainer", "--key", str(tmp_path / "second.key")],
                ["rotate", "trainer", "--key", str(key), "--ed25519", "--reason", "yearly", "--compromised-from", "7"],
                ["rotate", "nobody", "--key", str(key), "--reason", "yearly"],
                ["rotate", "trainer", "--key", "hsm:2", "--reason", "yearly"],
                ["revoke", "second", "--reason", "left"],
                ["list", "--json"],
                ["list"],
            ]
            return [await asyncio.to_thread(run, [*server, *command]) for command in commands]

    assert asyncio.run(main()) == [0, 0, 1, 2, 0, 0, 0]
    told = capsys.readouterr()
    assert "there is no actor 'nobody'" in told.err
    assert "needs --public-key" in told.err
    listed = json.JSONDecoder().raw_decode(told.out, told.out.index("[\n"))[0]
    trainer = next(actor for actor in listed if actor["name"] == "actors/trainer")
    assert [each["algorithm"] for each in trainer["keys"]] == ["ECDSA P-256", "Ed25519"]
    assert (trainer["keys"][0]["compromisedFrom"], trainer["keys"][1]["keyId"]) == ("7", actor_signer(key).keyid)
    assert next(actor for actor in listed if actor["name"] == "actors/second")["revoked"]
    verify_whole_log(story.store)
