"""What inference writes in the log: which names are served, and which files its engines hold."""

from __future__ import annotations

from google.protobuf.message import Message
from modelledger.ledger.v1 import events_pb2, ledger_pb2, registry_pb2_grpc

from inference.aggregate import Deployment, deployment_stream
from inference.config import InferenceConfig
from inference.serving_config import Serving, render
from ledger.kit.aggregate import Recorded
from ledger.kit.application import Command, LedgerApplication
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.client import call
from ledger.resource_names import BASE_ORG, parse_served
from ledger.statement import Artifact


class Deployments(LedgerApplication):
    """Events of the actor "inference". Every method blocks: call it in a thread."""

    def __init__(self, config: InferenceConfig) -> None:
        super().__init__("inference", str(config.data / "keys" / "inference.key"), config, config.key)
        self.artifacts = ArtifactStore(config.data / "artifacts")
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel)

    def heard_of(self, name: str) -> bool:
        """Whether the log has a model or base model that is served under this name. Raises InvalidName."""
        served = parse_served(name, "name")
        stream = f"base-models/{served.model}" if served.org == BASE_ORG else served.stream
        request = ledger_pb2.ListEventsRequest(stream=stream, page_size=1)
        return bool(call(self.ledger.ListEvents, request).events)

    def switched(self, name: str, enabled: bool, command: Command) -> bool:
        """Whether the log has this very command already. Raises EventIdReused when it has another under its id."""

        def same(earlier: Recorded) -> bool:
            was = earlier.data
            return isinstance(was, events_pb2.DeploymentChanged) and (was.name, was.enabled) == (name, enabled)

        return self.done(command, same) is not None

    def changed(
        self,
        name: str,
        enabled: bool,
        serving: Serving,
        caller: events_pb2.Caller | None = None,
        event_id: str = "",
    ) -> None:
        """Record that a name answers from now on, or does not; nothing when the log says so already.

        The configuration as a whole is stored and introduced with it. caller: None for an edit of the file, which is
        recorded for the names that it switches only.
        """
        stored = self.artifacts.put_bytes(render(serving).encode())
        subject = Artifact(deployment_stream(name), stored.sha256)
        event = events_pb2.DeploymentChanged(name=name, enabled=enabled, caller=caller)

        def attempt() -> None:
            deployment = self.load(Deployment, subject.name)
            new = caller is not None and deployment.document != stored.sha256
            if new or deployment.enabled != enabled:
                deployment.trigger(event, [subject], event_id=event_id)
                self.record(deployment)

        self.retried(attempt)

    def note(self, name: str, event: Message, gguf: Artifact) -> None:
        """Record what an engine did with a file, in the name's stream."""

        def attempt() -> None:
            deployment = Deployment(deployment_stream(name))
            newest = ledger_pb2.ListEventsRequest(stream=deployment.id, descending=True, page_size=1)
            # Engines come and go for years: the stream's length is enough here, its events are not read.
            deployment.version = max((e.version for e in call(self.ledger.ListEvents, newest).events), default=0)
            deployment.trigger(event, [gguf])
            self.record(deployment)

        self.retried(attempt)
