"""What the ledger process is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from modelledger.ledger.v1 import (
    actors_pb2_grpc,
    certification_pb2_grpc,
    ledger_pb2_grpc,
    registry_pb2_grpc,
    subscription_pb2_grpc,
)

from ledger.actors import ActorServicer
from ledger.certification import Certification
from ledger.committer import Committer
from ledger.config import LedgerConfig
from ledger.following import Follower
from ledger.founding import found
from ledger.group_store import GroupStore
from ledger.groups import Groups
from ledger.http import create_app
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.serve import Address, Servicer
from ledger.local_actor import LocalActor
from ledger.registry import Registry
from ledger.registry_view import REGISTRY_VIEW
from ledger.sequencer import Sequencer
from ledger.service import LedgerServicer
from ledger.signers import actor_signers, log_signer
from ledger.store import Store
from ledger.subscriptions import Subscriptions
from ledger.view_process import ViewProcess
from ledger.view_reader import ViewReader
from ledger.watching import WatchLimits
from ledger.witnessing import open_witnessing
from ledger.writer import LogSettings, Writer


class LedgerPart:
    """The log, its views, and their servicers; ready to answer as soon as it is made."""

    def __init__(self, config: LedgerConfig) -> None:
        log = log_signer(config.keys, config.origin)
        signers = actor_signers(config.keys, config.actor_keys)
        self.store = Store(config.database_url, log)
        found(Committer(self.store), log, signers, config.keys / "log.vkey")
        settings = LogSettings(config.database_url, config.keys, config.origin)
        self.writer = Writer(settings, self.store)
        self.sequencer = Sequencer(self.writer)
        self._follower = Follower(self.store)
        self.witnessing = open_witnessing(self.store, config.database_url, config.witnesses)
        checkpoints = self.witnessing.checkpoints
        self.view = ViewProcess(settings)
        view = ViewReader(self.store, REGISTRY_VIEW, self.view.reach)
        registry = Registry(self.store, view, LocalActor("registry", signers["registry"], self.store, self.sequencer))
        certification = Certification(
            self.store,
            ArtifactStore(config.artifacts),
            LocalActor("certification", signers["certification"], self.store, self.sequencer),
            checkpoints=checkpoints,
        )
        actors = ActorServicer(
            self.store, LocalActor("ledger", signers["ledger"], self.store, self.sequencer), config.administrators
        )
        limits = WatchLimits(config.max_watchers, config.watch_stall_seconds)
        ledger = LedgerServicer(self.store, self.sequencer, checkpoints, limits)
        self._groups = GroupStore(config.database_url)
        subscriptions = Subscriptions(self.store, Groups(self.store, self._groups))
        self.servicers: Sequence[Servicer] = [
            Servicer(
                "modelledger.ledger.v1.SubscriptionService",
                lambda server: subscription_pb2_grpc.add_SubscriptionServiceServicer_to_server(subscriptions, server),
            ),
            Servicer(
                "modelledger.ledger.v1.LedgerService",
                lambda server: ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger, server),
            ),
            Servicer(
                "modelledger.ledger.v1.RegistryService",
                lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server),
            ),
            Servicer(
                "modelledger.ledger.v1.CertificationService",
                lambda server: certification_pb2_grpc.add_CertificationServiceServicer_to_server(certification, server),
            ),
            Servicer(
                "modelledger.ledger.v1.ActorService",
                lambda server: actors_pb2_grpc.add_ActorServiceServicer_to_server(actors, server),
            ),
        ]
        self.http: Sequence[tuple[Any, Address]] = [
            (create_app(self.store, checkpoints), Address.parse(config.http, "http"))
        ]

    async def start(self) -> None:
        await self.writer.start()
        await self.view.start()
        self._follower.start()
        self.witnessing.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self._follower.stop)
        await asyncio.to_thread(self.witnessing.stop)

    async def close(self) -> None:
        await self.sequencer.close()
        await self.view.close()
        self.witnessing.close()
        self._groups.close()
        self.store.close()
