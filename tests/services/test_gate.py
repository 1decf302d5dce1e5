"""The gate's thread hears of the log's changes, whatever goes wrong meanwhile."""

from __future__ import annotations

import logging

import pytest
from modelledger.ledger.v1 import ledger_pb2_grpc

from inference.gate import Gate
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.client import connect
from tests.house import House, eventually


def test_whoever_fails_to_be_told_does_not_end_it(house: House, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[int] = []

    def on_change() -> None:
        heard.append(len(heard))
        raise RuntimeError("nobody listens")

    gate = Gate(house.ledger, house.registry, ArtifactStore(house.data / "artifacts"), on_change)
    gate.start()
    try:
        house.register_base("tiny-base")
        eventually(lambda: heard)
        before = len(heard)
        house.restart("ledger")
        eventually(lambda: len(heard) > before)
        assert "could not be passed on" in caplog.text
    finally:
        gate.stop()


def test_an_unexpected_failure_does_not_end_it(house: House, caplog: pytest.LogCaptureFixture) -> None:
    channel = connect(house.addresses["ledger"])
    ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
    gate = Gate(ledger, house.registry, ArtifactStore(house.data / "artifacts"), lambda: None)
    with caplog.at_level(logging.ERROR, "modelledger.inference"):
        gate.start()
        channel.close()  # from here on a call raises what is no error of our tree
        try:
            eventually(lambda: caplog.text.count("it is followed again") > 1)
        finally:
            gate.stop()
