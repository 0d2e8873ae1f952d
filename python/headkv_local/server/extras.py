"""Embeddings and tokens: llama-cpp-python's small routes, in the line with the others."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any, Literal

import llama_cpp
import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from llama_cpp.server.types import (
    CreateEmbeddingRequest,
    DetokenizeInputRequest,
    DetokenizeInputResponse,
    TokenizeInputCountResponse,
    TokenizeInputRequest,
    TokenizeInputResponse,
)
from pydantic import Field, model_validator

from .errors import Refusal, Route
from .routes import Gone, next_unless_gone
from .served import Served
from .service import Service

router = APIRouter(route_class=Route)


class EmbeddingBody(CreateEmbeddingRequest):  # type: ignore[misc]
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None,
        description="How an embedding is written: as numbers, or little-endian float32 in base64.",
    )

    dimensions: int | None = Field(
        default=None, description="Numbers of an embedding, as the model has them."
    )

    @model_validator(mode="after")
    def _check(self) -> EmbeddingBody:
        if self.input == []:
            raise ValueError("input is an empty list: there is nothing to embed")
        return self


@router.post("/v1/embeddings", summary="Embedding", tags=["OpenAI V1"])
async def create_embedding(request: Request, body: EmbeddingBody) -> Response:
    service: Service = request.app.state.service
    body.model = service.models.known(body.model)
    if not service.models.settings[body.model].embedding:
        raise Refusal(400, f"{body.model} makes no embeddings: start the server with --embedding")

    def embed(llm: Served) -> Any:
        _require_embeddable(llm, body)
        if llm.keeper is not None:
            llm.keeper.leave(llm.retention)  # it uses the context
        try:
            made = llm.create_embedding(body.input, body.model)
        finally:
            llm.reset()
        if body.encoding_format == "base64":
            for one in made["data"]:
                one["embedding"] = b64encode(np.asarray(one["embedding"], "<f4").tobytes()).decode("ascii")
        return made

    return await _answer(request, body.model, embed)


@router.post("/extras/tokenize", response_model=TokenizeInputResponse, tags=["Extras"])
async def tokenize(request: Request, body: TokenizeInputRequest) -> Response:
    return await _answer(request, body.model, lambda llm: {"tokens": _tokens(llm, body.input)})


@router.post("/extras/tokenize/count", response_model=TokenizeInputCountResponse, tags=["Extras"])
async def count_tokens(request: Request, body: TokenizeInputRequest) -> Response:
    return await _answer(request, body.model, lambda llm: {"count": len(_tokens(llm, body.input))})


@router.post("/extras/detokenize", response_model=DetokenizeInputResponse, tags=["Extras"])
async def detokenize(request: Request, body: DetokenizeInputRequest) -> Response:
    return await _answer(
        request,
        body.model,
        lambda llm: {"text": llm.detokenize(body.tokens).decode("utf-8", errors="replace")},
    )


def _require_embeddable(llm: Served, body: EmbeddingBody) -> None:
    """Raises Refusal for what stock would set aside without a word, and for what base64 cannot say."""
    if body.encoding_format == "base64" and llm.pooling_type() == llama_cpp.LLAMA_POOLING_TYPE_NONE:
        raise Refusal(
            400,
            f'{body.model} makes an embedding of each token: encoding_format must be "float"',
            param="encoding_format",
        )
    if body.dimensions not in (None, llm.n_embd()):
        raise Refusal(
            400,
            f"{body.model} makes embeddings of {llm.n_embd()} numbers, not {body.dimensions}",
            param="dimensions",
        )
    for text in [body.input] if isinstance(body.input, str) else body.input:
        n_tokens = len(llm.tokenize(text.encode("utf-8")))
        if not 1 <= n_tokens <= llm.n_batch:
            raise Refusal(
                400, f"an input has {n_tokens} tokens: it may have from 1 to {llm.n_batch}", param="input"
            )


def _tokens(llm: Served, text: str) -> list[int]:
    return llm.tokenize(text.encode("utf-8"), special=True)


async def _answer(request: Request, model: str | None, made: Callable[[Served], Any]) -> Response:
    service: Service = request.app.state.service
    name = service.models.known(model)
    work = service.work(lambda _: (made(service.models(name)) for _ in range(1)))
    try:
        return JSONResponse(await next_unless_gone(work, request))
    except Gone:
        return Response(status_code=499)  # nobody reads it
    finally:
        work.stop()
