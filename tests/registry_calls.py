"""Calling the registry of a story over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from modelledger.ledger.v1 import registry_pb2_grpc

from ledger.kit.interceptors import CallInterceptor
from ledger.registry import Registry
from ledger.registry_view import REGISTRY_VIEW, fold_registry
from ledger.view_reader import ViewReader
from ledger.views import ViewRunner
from tests.log_story import Story

MODEL = "orgs/acme/models/assistant"
V10, V11 = f"{MODEL}/versions/v1.0", f"{MODEL}/versions/v1.1"
WHO = (("modelledger-user", "bob"),)


def reader(story: Story, view: ViewRunner) -> ViewReader:
    return ViewReader(story.store, REGISTRY_VIEW, partial(asyncio.to_thread, view.wait_for))


@asynccontextmanager
async def serving(story: Story) -> AsyncIterator[Any]:
    """A stub for a registry over the story's log."""
    view = ViewRunner(story.store, REGISTRY_VIEW, fold_registry)
    view.start()
    server = grpc.aio.server(interceptors=[CallInterceptor()])
    registry = Registry(story.store, reader(story, view), story.actor("registry"))
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield registry_pb2_grpc.RegistryServiceStub(channel)
    finally:
        await server.stop(None)
        await story.sequencer.close()
        view.stop()


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    """(code, reason) of the error a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(caught.value)
    assert status.details[0].Unpack(info)
    return caught.value.code().name, info.reason
