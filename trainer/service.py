"""TrainerService: messages to the trainer's commands and back."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from modelledger.trainer.v1 import trainer_pb2, trainer_pb2_grpc

from ledger.errors import InvalidInput, InvalidName
from ledger.kit import catalog
from ledger.kit.interceptors import caller
from ledger.kit.listing import page, page_size
from ledger.kit.live import Changes
from ledger.kit.threads import in_thread
from trainer import dataset
from trainer.aggregate import CANCELLED, COMPLETED, FAILED, RUNNING, TrainingRun
from trainer.application import Training
from trainer.worker import TrainingJob

MAX_PROBLEMS = 1_000
ENDED = (COMPLETED, FAILED, CANCELLED)

Context = Any  # grpc.aio.ServicerContext; the handlers use nothing of it


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """The trainer over gRPC. Commands run in threads; watches live on the event loop."""

    def __init__(self, training: Training, job: TrainingJob, changes: Changes) -> None:
        self._training = training
        self._job = job
        self._changes = changes
        self._progress: dict[str, float] = {}

    async def ListLocalBases(
        self, request: trainer_pb2.ListLocalBasesRequest, context: Context
    ) -> trainer_pb2.ListLocalBasesResponse:
        catalogue = await in_thread(self._training.catalogue)
        bases = [_local_base(base) for _, base in sorted(catalogue.models.items())]
        bases += [
            trainer_pb2.LocalBase(key=unusable.key, folder=str(unusable.folder), unusable_reason=unusable.reason)
            for unusable in catalogue.unusable
        ]
        shown, token = page(bases, request.page_size, request.page_token)
        return trainer_pb2.ListLocalBasesResponse(bases=shown, next_page_token=token)

    async def RegisterBase(
        self, request: trainer_pb2.RegisterBaseRequest, context: Context
    ) -> trainer_pb2.RegisterBaseResponse:
        asked_by = caller()

        def register() -> tuple[catalog.BaseModel, int]:
            [base] = catalog.select([request.base], self._training.catalogue())
            return base, self._training.register_base(base, asked_by, request.request_id)

        base, index = await in_thread(register)
        return trainer_pb2.RegisterBaseResponse(base=_local_base(base), event_index=index)

    async def CheckDataset(
        self, requests: AsyncIterator[trainer_pb2.CheckDatasetRequest], context: Context
    ) -> trainer_pb2.CheckDatasetResponse:
        asked_by = caller()
        with tempfile.NamedTemporaryFile(prefix="dataset-", suffix=".jsonl") as file:
            header = await _receive(requests, file)
            path = Path(file.name)
            named = f"dataset {header.dataset}" if header.dataset else "the dataset"
            report = await in_thread(dataset.check, path, name=named)
            index = None
            if header.register:
                index = await in_thread(
                    self._training.register_dataset,
                    header.org,
                    header.dataset,
                    path,
                    report,
                    asked_by,
                    accept_below_minimum=header.accept_below_minimum,
                    request_id=header.request_id,
                )
        return trainer_pb2.CheckDatasetResponse(
            sha256=report.sha256,
            size=report.size,
            examples=len(report.examples),
            form="+".join(report.forms),
            band=report.band,
            problems=[
                trainer_pb2.LineProblem(line=p.line, field=p.field, reason=p.reason)
                for p in report.problems[:MAX_PROBLEMS]
            ],
            problem_count=report.refused_lines,
            event_index=index,
            minimum_examples=dataset.MINIMUM,
        )

    async def StartTrainingRun(
        self, request: trainer_pb2.StartTrainingRunRequest, context: Context
    ) -> trainer_pb2.StartTrainingRunResponse:
        run = await in_thread(
            self._training.request_run,
            request.model,
            request.bases,
            request.dataset_sha256,
            request.options,
            caller(),
            dataset_name=request.dataset,
            profile=request.profile,
            parent_version=request.parent_version,
            activate=request.activate,
            major=request.major,
            request_id=request.request_id,
        )
        return trainer_pb2.StartTrainingRunResponse(run=await in_thread(self._message, run))

    async def GetTrainingRun(
        self, request: trainer_pb2.GetTrainingRunRequest, context: Context
    ) -> trainer_pb2.GetTrainingRunResponse:
        return trainer_pb2.GetTrainingRunResponse(run=await in_thread(self._read, _run_id(request.name)))

    async def ListTrainingRuns(
        self, request: trainer_pb2.ListTrainingRunsRequest, context: Context
    ) -> trainer_pb2.ListTrainingRunsResponse:
        def read() -> tuple[list[trainer_pb2.TrainingRun], str]:
            size = page_size(request.page_size)
            streams, token = self._training.newest(TrainingJob.requested, size, request.page_token)
            return [self._read(stream.removeprefix("training-runs/")) for stream in streams], token

        runs, token = await in_thread(read)
        return trainer_pb2.ListTrainingRunsResponse(runs=runs, next_page_token=token)

    async def WatchTrainingRun(
        self, request: trainer_pb2.WatchTrainingRunRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.WatchTrainingRunResponse]:
        run_id = _run_id(request.name)
        last = None
        with self._changes.watching(f"training-runs/{run_id}") as changed:
            while True:
                run = await in_thread(self._training.run, run_id)
                message = await in_thread(self._message, run)
                if message != last:
                    yield trainer_pb2.WatchTrainingRunResponse(run=message)
                    last = message
                if message.state in ENDED:
                    return
                await changed()

    async def CancelTrainingRun(
        self, request: trainer_pb2.CancelTrainingRunRequest, context: Context
    ) -> trainer_pb2.CancelTrainingRunResponse:
        run = await in_thread(
            self._training.cancel_run, _run_id(request.name), request.reason, caller(), request.request_id
        )
        self._changes.publish(run.id)
        return trainer_pb2.CancelTrainingRunResponse(run=await in_thread(self._message, run))

    def _read(self, run: str) -> trainer_pb2.TrainingRun:
        return self._message(self._training.run(run))

    def _message(self, run: TrainingRun) -> trainer_pb2.TrainingRun:
        live = self._job.live.get(run.id)
        state = RUNNING if run.id in self._job.finishing else run.state
        return trainer_pb2.TrainingRun(
            name=run.id,
            state=state,
            request=run.request,
            epochs=run.epochs,
            outcome=run.outcome,
            reason=run.reason,
            version=self._training.version_of(run),
            progress=self._percent(run, state, live),
            create_time=run.create_time,
            live=live,
            attempts=run.attempts,
        )

    def _percent(self, run: TrainingRun, state: int, live: trainer_pb2.LiveStep | None) -> float:
        """Share of the epochs done, the live step counted in. Never goes back, and is 100 only at the end."""
        if state == COMPLETED:
            self._progress.pop(run.id, None)
            return 100.0
        if not run.request.bases:
            return 0.0
        done = sum(1 / epoch.epochs for epoch in run.epochs)
        if live and live.steps:
            of_base = sum(1 / epoch.epochs for epoch in run.epochs if epoch.base == live.base)
            done += max(0.0, live.step / live.steps - of_base)
        percent = min(99.0, 100 * done / len(run.request.bases))
        percent = max(percent, self._progress.get(run.id, 0.0))
        if not run.over:
            self._progress[run.id] = percent
        else:
            self._progress.pop(run.id, None)
        return round(percent, 1)


async def _receive(requests: AsyncIterator[trainer_pb2.CheckDatasetRequest], file: Any) -> trainer_pb2.DatasetHeader:
    """Write the pieces to a file; the header comes first and once. Bounded."""
    header, size = None, 0
    async for request in requests:
        part = request.WhichOneof("part")
        if (header is None) != (part == "header"):
            raise InvalidInput("the header comes first, once, and then the pieces of the file")
        if part == "header":
            header = request.header
            continue
        size += len(request.chunk)
        if size > dataset.MAX_BYTES:
            raise InvalidInput(f"a dataset has at most {dataset.MAX_BYTES} bytes")
        file.write(request.chunk)
    if header is None:
        raise InvalidInput("nothing was sent; the header comes first")
    file.flush()
    return header


def _local_base(base: catalog.BaseModel) -> trainer_pb2.LocalBase:
    return trainer_pb2.LocalBase(
        key=base.key,
        display_name=base.display_name,
        architecture=base.architecture,
        parameters=base.parameters,
        licence=base.licence or "",
        sha256=base.sha256,
        size=base.size,
        folder=str(base.path),
    )


def _run_id(name: str) -> str:
    prefix, _, run = name.rpartition("/")
    if prefix != "training-runs" or not run:
        raise InvalidName(f"name: {name[:100]!r} does not have the form training-runs/{{run}}")
    return run
