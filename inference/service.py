"""InferenceService: messages to answers and deployments, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, Literal

from modelledger.inference.v1 import inference_pb2, inference_pb2_grpc

from inference.answering import Answering, provenance
from inference.engines import Engines
from inference.generation import Done, Generation, Message
from inference.openai_http import Answer
from inference.openai_request import GenerateCall
from inference.serving_config import ServedModel, Serving, ServingConfig
from inference.upkeep import Upkeep
from ledger.errors import InvalidInput, NotFound
from ledger.kit.interceptors import caller
from ledger.kit.listing import page

MAX_TOKENS, TEMPERATURE, TOP_P = 256, 0.7, 0.95  # when the request does not say
ROLES: tuple[Literal["system", "user", "assistant"], ...] = ("system", "user", "assistant")

Context = Any  # grpc.aio.ServicerContext; the handlers use nothing of it


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Inference over gRPC. A call that is cancelled ends its generation."""

    def __init__(self, config: ServingConfig, answering: Answering, engines: Engines, upkeep: Upkeep) -> None:
        self._config = config
        self._answering = answering
        self._engines = engines
        self._upkeep = upkeep

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        answer = await self._answer(request)
        text: list[str] = []
        response = inference_pb2.GenerateResponse(provenance=_provenance(answer))
        async with aclosing(answer.items):
            async for item in answer.items:
                if isinstance(item, Done):
                    response.finish_reason = item.finish_reason
                    response.usage.CopyFrom(_usage(item))
                else:
                    text.append(item.text)
        response.text = "".join(text)
        return response

    async def StreamGenerate(
        self, request: inference_pb2.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        answer = await self._answer(request.request)
        source: inference_pb2.Provenance | None = _provenance(answer)
        async with aclosing(answer.items):
            async for item in answer.items:
                if isinstance(item, Done):
                    yield inference_pb2.StreamGenerateResponse(
                        finish_reason=item.finish_reason, usage=_usage(item), provenance=source
                    )
                else:
                    yield inference_pb2.StreamGenerateResponse(text=item.text, provenance=source)
                source = None

    async def ListDeployments(
        self, request: inference_pb2.ListDeploymentsRequest, context: Context
    ) -> inference_pb2.ListDeploymentsResponse:
        serving = self._config.current()
        models, token = page(serving.models, request.page_size, request.page_token)
        deployments = await asyncio.gather(*(self._deployment(serving, model) for model in models))
        return inference_pb2.ListDeploymentsResponse(
            deployments=deployments,
            next_page_token=token,
            config_problem=self._config.problem.message if self._config.problem else "",
        )

    async def SetDeployment(
        self, request: inference_pb2.SetDeploymentRequest, context: Context
    ) -> inference_pb2.SetDeploymentResponse:
        serving = await self._upkeep.switch(
            request.name, request.enabled, request.make_default, caller(), request.request_id
        )
        model = next((model for model in serving.models if model.name == request.name), None)
        if model is None:  # this very request was done before, and the name taken out of the file since
            raise NotFound(f"{request.name} is not in serving.toml any more")
        return inference_pb2.SetDeploymentResponse(deployment=await self._deployment(serving, model))

    async def _answer(self, request: inference_pb2.GenerateRequest) -> Answer:
        return await self._answering.generate(GenerateCall(request.model or None, caller().id, _generation(request)))

    async def _deployment(self, serving: Serving, model: ServedModel) -> inference_pb2.Deployment:
        file, problem = await self._answering.servable(model)
        return inference_pb2.Deployment(
            name=model.name,
            enabled=model.enabled,
            is_default=model.name == serving.default,
            serves=inference_pb2.Provenance(**asdict(provenance(file))) if file else None,
            problem=problem,
            loaded=file is not None and file.gguf.sha256 in self._engines.held(),
        )


def _generation(request: inference_pb2.GenerateRequest) -> Generation:
    sampling = request.sampling
    return Generation(
        messages=tuple(map(_message, request.messages, range(len(request.messages)))) or None,
        prompt=request.prompt or None,
        max_tokens=sampling.max_tokens or MAX_TOKENS,
        temperature=sampling.temperature if sampling.HasField("temperature") else TEMPERATURE,
        top_p=sampling.top_p if sampling.HasField("top_p") else TOP_P,
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=tuple(sampling.stop),
    )


def _message(message: inference_pb2.ChatMessage, place: int) -> Message:
    for role in ROLES:
        if message.role == role:
            return Message(role, message.content)
    raise InvalidInput(f"messages[{place}].role: {message.role[:40]!r} is not one of {', '.join(ROLES)}")


def _provenance(answer: Answer) -> inference_pb2.Provenance:
    return inference_pb2.Provenance(**asdict(answer.provenance))


def _usage(done: Done) -> inference_pb2.Usage:
    return inference_pb2.Usage(prompt_tokens=done.prompt_tokens, completion_tokens=done.completion_tokens)
