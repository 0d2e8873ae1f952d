"""Embeddings and tokens: llama-cpp-python's small routes, in the line with the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

from .errors import Refusal, Route
from .routes import Gone, next_unless_gone
from .served import Served
from .service import Service

router = APIRouter(route_class=Route)


@router.post("/v1/embeddings", summary="Embedding", tags=["OpenAI V1"])
async def create_embedding(request: Request, body: CreateEmbeddingRequest) -> Response:
    service: Service = request.app.state.service
    body.model = service.models.known(body.model)
    if not service.models.settings[body.model].embedding:
        raise Refusal(400, f"{body.model} makes no embeddings: start the server with --embedding")

    def embed(llm: Served) -> Any:
        if llm.keeper is not None:
            llm.keeper.leave(llm.retention)  # it uses the context
        try:
            return llm.create_embedding(body.input, body.model)
        finally:
            llm.reset()

    return await _answer(request, body.model, embed)


@router.post("/extras/tokenize", response_model=TokenizeInputResponse, tags=["Extras"])
async def tokenize(request: Request, body: TokenizeInputRequest) -> Response:
    return await _answer(request, body.model, lambda llm: {"tokens": _tokens(llm, body.input)})


@router.post("/extras/tokenize/count", response_model=TokenizeInputCountResponse, tags=["Extras"])
async def count_tokens(request: Request, body: TokenizeInputRequest) -> Response:
    return await _answer(request, body.model, lambda llm: {"count": len(_tokens(llm, body.input))})


@router.post("/extras/detokenize", response_model=DetokenizeInputResponse, tags=["Extras"])
async def detokenize(request: Request, body: DetokenizeInputRequest) -> Response:
    def text(llm: Served) -> Any:
        bad = next((token for token in body.tokens if not 0 <= token < llm.n_vocab()), None)
        if bad is not None:
            raise Refusal(400, f"token {bad} is none of the model's {llm.n_vocab()}", param="tokens")
        return {"text": llm.detokenize(body.tokens).decode("utf-8", errors="replace")}

    return await _answer(request, body.model, text)


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
