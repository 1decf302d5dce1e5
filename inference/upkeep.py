"""Keeps memory and log in line with what should be served, whenever serving.toml or the log changes.

a name was switched          -> DeploymentChanged in the log
auto_load, or a new version
of a name that is in memory  -> its file is loaded before anybody asks
a file nobody serves any more -> its engine goes when its running answers are done
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from modelledger.ledger.v1 import events_pb2

from inference.answering import Answering
from inference.application import Deployments
from inference.engines import Engines
from inference.gate import Vouched
from inference.serving_config import Serving, ServingConfig, write_toggle
from ledger.errors import ModelLedgerError, NotFound
from ledger.kit.application import Command
from ledger.kit.threads import in_thread

log = logging.getLogger("modelledger.inference")

LOOK_AGAIN = 1.0  # seconds: serving.toml may have been edited


class Upkeep:
    """One task on the event loop."""

    def __init__(self, config: ServingConfig, answering: Answering, engines: Engines, deployments: Deployments) -> None:
        self._config = config
        self._answering = answering
        self._engines = engines
        self._deployments = deployments
        self._recorded: dict[str, bool] = {}
        self._recording = asyncio.Lock()
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        ending = [self._task, *self._unloading.values()]
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)

    def look(self) -> None:
        """Something changed. May be called from any thread."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    async def switch(
        self, name: str, enabled: bool, make_default: bool, caller: events_pb2.Caller, request_id: str
    ) -> Serving:
        """Enable or disable a name in serving.toml and record who asked; a repeated request changes nothing.

        Raises NotFound, InvalidConfig, and EventIdReused before anything is changed.
        """
        if enabled and not await in_thread(self._deployments.heard_of, name):
            raise NotFound(f"the log has no model {name}; train it, or register the base model, first")
        command = Command("SetDeployment", caller, request_id)
        async with self._recording:
            if await in_thread(self._deployments.switched, name, enabled, command):
                return self._config.current()
            serving = await in_thread(write_toggle, self._config.path, name, enabled, make_default)
            await in_thread(self._deployments.changed, name, enabled, serving, caller, command.event_id)
            self._recorded[name] = enabled
        self.look()
        return serving

    async def _work(self) -> None:
        done: Serving | None = None
        while True:
            self._wake.clear()
            serving = self._config.current()
            if serving is not done:
                try:
                    await self._record(serving)
                    await self._settle(serving)
                    done = serving
                except ModelLedgerError as error:  # most likely the ledger is away; tried again
                    log.warning("engines and log are not in line with %s yet: %s", self._config.path, error.message)
                except Exception:
                    # One bad round, for example a full disk, must not end the upkeep; the next one tries again.
                    log.exception("engines and log are not in line with %s", self._config.path)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await self._wake.wait()
            if self._wake.is_set():  # also in the moment in which the wait was over
                done = None

    async def _record(self, serving: Serving) -> None:
        states = dict.fromkeys(self._recorded, False) | {model.name: model.enabled for model in serving.models}
        async with self._recording:
            for name, enabled in states.items():
                if self._recorded.get(name) != enabled:
                    await in_thread(self._deployments.changed, name, enabled, serving)
                    self._recorded[name] = enabled

    async def _settle(self, serving: Serving) -> None:
        held = self._engines.held()
        in_memory = {file.name for file in held.values()}
        wanted = set()
        for model in serving.enabled():
            file, problem = await self._answering.servable(model)
            if file is None:
                log.info("%s", problem)
                continue
            wanted.add(file.gguf.sha256)
            if model.auto_load or model.name in in_memory:
                await self._load(file)
        for sha256 in wanted & self._unloading.keys():
            self._unloading[sha256].cancel()  # it is served again, and answers on
        for sha256 in held.keys() - wanted - self._unloading.keys():
            unloading = self._unloading[sha256] = asyncio.create_task(self._unload(sha256))
            # Also of one that is cancelled before it has begun.
            unloading.add_done_callback(lambda _, sha256=sha256: self._unloading.pop(sha256))

    async def _unload(self, sha256: str) -> None:
        """As long as its answers take; meanwhile the log may say otherwise."""
        try:
            await self._engines.unload(sha256)
        except Exception:
            log.exception("the engine of %s was not unloaded", sha256)

    async def _load(self, file: Vouched) -> None:
        try:
            await self._engines.load(file)
        except ModelLedgerError as error:  # this name's trouble; whoever asks for it is told
            log.error("%s %s was not loaded: %s", file.name, file.version, error.message)
