"""What the log says about a served name: deployments/{org}/{model}."""

from __future__ import annotations

from typing import cast

from modelledger.ledger.v1 import events_pb2

from ledger.kit.aggregate import LedgerAggregate, Recorded


class Deployment(LedgerAggregate):
    """One served name. `enabled` and `document` (a digest) are what was recorded last; None when nothing was."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.enabled: bool | None = None
        self.document: str | None = None

    def on_DeploymentChanged(self, event: Recorded) -> None:
        self.enabled = cast(events_pb2.DeploymentChanged, event.data).enabled
        self.document = event.subjects[0].sha256


def deployment_stream(name: str) -> str:
    return f"deployments/{name}"
