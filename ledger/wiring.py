"""What the ledger process is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from modelledger.ledger.v1 import certification_pb2_grpc, ledger_pb2_grpc, registry_pb2_grpc, subscription_pb2_grpc

from ledger.certification import Certification
from ledger.config import LedgerConfig
from ledger.founding import actor_signers, found, log_signer
from ledger.group_store import GroupStore
from ledger.groups import Groups
from ledger.http import create_app
from ledger.kit.artifacts import ArtifactStore
from ledger.kit.serve import Address, Servicer
from ledger.local_actor import LocalActor
from ledger.registry import Registry
from ledger.registry_view import fold_registry, keys_read
from ledger.sequencer import Sequencer
from ledger.service import LedgerServicer
from ledger.store import Store
from ledger.subscriptions import Subscriptions
from ledger.views import ViewRunner
from ledger.watching import WatchLimits


class LedgerPart:
    """The log, its views, and their servicers; ready to answer as soon as it is made."""

    def __init__(self, config: LedgerConfig) -> None:
        log = log_signer(config.keys, config.origin)
        signers = actor_signers(config.keys)
        self.store = Store(config.database_url, log)
        self.sequencer = Sequencer(self.store)
        found(self.sequencer, log, signers, config.keys / "log.vkey")
        self.view = ViewRunner(self.store, "registry", fold_registry, keys_read)
        registry = Registry(self.store, self.view, LocalActor("registry", signers["registry"], self.sequencer))
        certification = Certification(
            self.store,
            ArtifactStore(config.artifacts),
            LocalActor("certification", signers["certification"], self.sequencer),
        )
        ledger = LedgerServicer(self.sequencer, WatchLimits(config.max_watchers, config.watch_stall_seconds))
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
        ]
        self.http: Sequence[tuple[Any, Address]] = [(create_app(self.store), Address.parse(config.http))]

    async def start(self) -> None:
        self.view.start()

    async def stop(self) -> None:
        """Nothing here works on its own; calls end with the servers."""

    async def close(self) -> None:
        await self.sequencer.close()
        await asyncio.to_thread(self.view.stop)
        self._groups.close()
        self.store.close()
