"""llama-cpp-python's server app, with models that retain, and routes that keep conversations apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from llama_cpp.server import app as stock
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette_context.middleware import RawContextMiddleware
from starlette_context.plugins.request_id import RequestIdPlugin

from .. import __version__
from . import extras, routes, status
from .errors import refusal_of
from .guard import Guard
from .models import Models
from .network import is_local
from .service import Service
from .settings import ModelSettings, ServerSettings

# browsers ask for it where a page of the network wants to reach this machine; Starlette knows it since 0.51
_PRIVATE: Final = "allow_private_network"
_TO_THIS_MACHINE: Final[dict[str, Any]] = (
    {_PRIVATE: True} if _PRIVATE in signature(CORSMiddleware).parameters else {}
)

_METHODS: Final = ("GET", "HEAD", "POST")


def create_app(server_settings: ServerSettings, model_settings: Sequence[ModelSettings]) -> FastAPI:
    """An ASGI app; its first model is loaded once it is started. app.state.service is what its routes share.

    Raises ArgumentError for no model, or two of one name.
    """
    models = Models(model_settings, server_settings)
    service = Service(models, server_settings)
    unguarded = server_settings.model_copy(update={"api_key": None})  # the guard asks, before a body is read
    with _stock_of(models):
        app: FastAPI = stock.create_app(server_settings=unguarded, model_settings=list(model_settings))
    app.title, app.version = "headkv-server", __version__
    app.router.routes[:] = [route for route in app.router.routes if _is_of_docs(route)]
    app.user_middleware.clear()  # stock lets pages from everywhere in, and refuses names that are no UUID
    app.router.lifespan_context = service.lifespan
    app.state.service = service
    for router in (routes.router, extras.router, status.router):
        app.include_router(router)
    if server_settings.page:
        app.include_router(status.page)
    app.add_exception_handler(HTTPException, _refused)
    key = server_settings.api_key
    app.add_middleware(Guard, service=service, key=key, local=is_local(server_settings.host))
    if server_settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server_settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            **_TO_THIS_MACHINE,
        )
    # the last one is the outermost: what the others refuse has a name too
    app.add_middleware(RawContextMiddleware, plugins=(RequestIdPlugin(validate=False),))
    return app


def _is_of_docs(route: Any) -> bool:
    return isinstance(route, Route) and not isinstance(route, APIRoute)


async def _refused(request: Request, error: Exception) -> Response:
    """A path that nobody serves, or a method that it does not know."""
    refusal = refusal_of(error)
    if refusal.status == 405:  # Starlette names the methods of one route of the path
        routes = request.app.router.routes
        known = (
            method
            for method in _METHODS
            if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in routes)
        )
        refusal.headers["Allow"] = ", ".join(known)
    return refusal.response()


@contextmanager
def _stock_of(held: Models) -> Iterator[None]:
    """Stock's create_app() reads the environment, and loads a model, whatever it is given."""
    config, proxy = os.environ.pop("CONFIG_FILE", None), stock.LlamaProxy
    stock.LlamaProxy = lambda models: held
    try:
        yield
    finally:
        stock.LlamaProxy = proxy
        if config is not None:
            os.environ["CONFIG_FILE"] = config
