"""What the server says of itself: health, metrics, models, and the page to try it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from .. import __version__
from ..errors import HeadKVError
from .errors import Refusal, Route
from .metrics import exposition, memory_of
from .service import Service

_PAGE = Path(__file__).with_name("page.html")
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(route_class=Route)
page = APIRouter(route_class=Route)


def _read(router: APIRouter, path: str, **told: Any) -> Callable[[Any], Any]:
    """A route for GET and HEAD."""

    def add(function: Any) -> Any:
        router.head(path, include_in_schema=False)(function)
        return router.get(path, **told)(function)

    return add


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@_read(router, "/health", tags=["Status"])
async def health(request: Request) -> Response:
    """200 once requests are answered, 503 before and at the end, or where the model cannot be loaded.

    Needs no key.
    """
    service = _service(request)
    status = "ok" if service.ready else "loading" if service.failed is None else "failed"
    if service.stopping:
        status = "stopping"
    told = {"status": status, "version": __version__}
    if service.ready:
        told["model"] = service.models.name or service.models.default
    return JSONResponse(told, 200 if status == "ok" else 503)


@_read(router, "/metrics", tags=["Status"])
async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    text = await exposition(_service(request))
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@_read(router, "/v1/models", tags=["OpenAI V1"])
async def list_models(request: Request) -> Response:
    service = _service(request)
    data = [await asyncio.to_thread(_model, service, name) for name in service.models.settings]
    return JSONResponse({"object": "list", "data": data})


@_read(router, "/v1/models/{name:path}", tags=["OpenAI V1"])
async def get_model(request: Request, name: str) -> Response:
    service = _service(request)
    return JSONResponse(await asyncio.to_thread(_model, service, service.models.known(name)))


def _model(service: Service, name: str) -> dict[str, Any]:
    settings = service.models.settings[name]
    loaded = service.models.loaded if service.models.name == name else None
    told: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "me",
        "permissions": [],
        "retention": {
            "budget": settings.budget,
            "scores": "model"
            if settings.scores is None
            else "uniform"
            if settings.scores == "uniform"
            else "file",
            "archive": settings.archive,
        },
        "loaded": loaded is not None,
    }
    if loaded is not None:
        with suppress(HeadKVError):  # another model takes its place
            told |= {"n_ctx": loaded.cache_stats().n_ctx, "memory": memory_of(loaded)}
    return told


@_read(page, "/", include_in_schema=False)
async def chat() -> Response:
    if not _PAGE.is_file():
        raise Refusal(404, "the page is not part of this installation")
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=headers)
