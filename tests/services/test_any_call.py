"""Whatever is sent to whatever method: an answer or a reason of our own, and the services and the log as before."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from modelledger.trainer.v1 import trainer_pb2

from tests.mutations import changed
from tests.random_messages import messages, near
from tests.target import METHODS, Target, bounded

every_method = pytest.mark.parametrize(
    ("service", "method"), METHODS, ids=[method.full_name.removeprefix("modelledger.") for _, method in METHODS]
)


NAMES = {method.name: (service, method) for service, method in METHODS}


def test_every_method_that_the_services_have_is_called_here(target: Target) -> None:
    called = {method.containing_service.full_name for _, method in METHODS}
    served = set()
    for channel in target.channels.values():
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        [answer] = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        served |= {service.name for service in answer.list_services_response.service}
    assert {name for name in served if not name.startswith("grpc.")} == called
    assert set(NAMES) == set(target.accepted), "tests/target.py says for every method what it accepts"


def test_a_dataset_without_an_example_is_not_ready_even_when_few_are_enough(target: Target) -> None:
    _, method = NAMES["CheckDataset"]
    header, _ = target.accepted["CheckDataset"]
    sent = [header, trainer_pb2.CheckDatasetRequest(chunk=b"{}")]
    assert target.check("trainer", method, [message.SerializeToString() for message in sent]) == "NOT_READY"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("List")])
@bounded(40)
@given(data=st.data())
def test_a_page_token_is_one_that_was_given_or_refused(target: Target, name: str, data: st.DataObject) -> None:
    service, method = NAMES[name]
    [message] = target.accepted[name]
    if "page_token" not in method.input_type.fields_by_name:
        return
    token = data.draw(changed(data.draw(st.sampled_from(target.words["page_token"])).encode(), target.token.encode()))
    ask = type(message)()
    ask.CopyFrom(message)
    ask.page_token = token.decode(errors="replace")
    assert target.check(service, method, [ask.SerializeToString()]) in ("", "INVALID_INPUT")


@every_method
@bounded(20)
@given(data=st.data())
def test_any_message(target: Target, service: str, method: MethodDescriptor, data: st.DataObject) -> None:
    strategy = messages(method.input_type, target.words)
    several = st.lists(strategy, max_size=4) if method.client_streaming else st.lists(strategy, min_size=1, max_size=1)
    target.check(service, method, [message.SerializeToString() for message in data.draw(several)])


@every_method
@bounded(20)
@given(data=st.data())
def test_almost_what_is_accepted(target: Target, service: str, method: MethodDescriptor, data: st.DataObject) -> None:
    sent = [data.draw(near(message, target.words)) for message in target.accepted[method.name]]
    target.check(service, method, [message.SerializeToString() for message in sent])


@every_method
@bounded(20)
@given(data=st.data())
def test_damaged_bytes(target: Target, service: str, method: MethodDescriptor, data: st.DataObject) -> None:
    sent = [message.SerializeToString() for message in target.accepted[method.name]]
    target.check(service, method, [data.draw(changed(message)) for message in sent])


@every_method
@bounded(12)
@given(data=st.binary(max_size=40))
def test_any_bytes(target: Target, service: str, method: MethodDescriptor, data: bytes) -> None:
    target.check(service, method, [data])


@every_method
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xff", b"\x0b" * 3_000, b"\x0a\x02\xff\xfe\x12\x02\xff\xfe"])
def test_bytes_that_are_no_message(target: Target, service: str, method: MethodDescriptor, data: bytes) -> None:
    reason = target.check(service, method, [data])
    try:
        GetMessageClass(method.input_type).FromString(data)
    except Exception:
        assert reason == "INVALID_INPUT"
