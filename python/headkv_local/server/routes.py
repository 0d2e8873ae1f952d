"""Completions and chats: llama-cpp-python's bodies and answers, one conversation apart from the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import closing, suppress
from time import time
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response
from llama_cpp.server import app as stock
from sse_starlette.sse import EventSourceResponse

from ..errors import Cancelled
from ..forms import require_bias
from .bodies import NEW_FIELDS, ChatBody, CompletionBody
from .calls import Calls
from .errors import Route, refusal_of
from .fitting import require_few
from .grammars import require_grammars
from .logprobs import LEAST, add_bytes
from .retaining import retention_of, settings_for
from .served import Asked, Served
from .service import GRACE, Service
from .variables import told
from .work import GaveWay, Job, Work

_UNUSED = {"n", "best_of", "logit_bias_type", "user", "min_tokens"}  # of which stock hands nothing on
_READY = object()  # the prompt is read next: what could be refused has been

router = APIRouter(route_class=Route)


@router.post("/v1/completions", summary="Completion", tags=["OpenAI V1"])
async def create_completion(request: Request, body: CompletionBody) -> Response:
    return await _answer(request, body, Served.create_completion)


@router.post("/v1/engines/copilot-codex/completions", include_in_schema=False)
async def create_copilot_completion(request: Request, body: CompletionBody) -> Response:
    body.model = None
    return await _answer(request, body, Served.create_completion)


async def _require_few(request: Request) -> None:
    """Before each message is checked, for which all others would wait."""
    given: Any = None
    with suppress(ValueError, RecursionError):  # FastAPI tells of it
        given = await request.json()
    if isinstance(given, dict) and isinstance(given.get("messages"), list):
        models = request.app.state.service.models
        n_ctx = models.contexts.get(str(given.get("model") or models.default))
        if n_ctx is not None:  # else that is known once the model is loaded
            require_few(given["messages"], n_ctx)


@router.post("/v1/chat/completions", summary="Chat", tags=["OpenAI V1"], dependencies=[Depends(_require_few)])
async def create_chat_completion(request: Request, body: ChatBody) -> Response:
    return await _answer(request, body, Served.create_chat_completion)


async def _answer(request: Request, body: Any, call: Any) -> Response:
    service: Service = request.app.state.service
    body.model = service.models.known(body.model)
    work = service.work(_job(service, body, call))
    work.streams = body.stream
    try:
        first = await next_unless_gone(work, request)
        if not body.stream:
            while first is _READY:
                first = await next_unless_gone(work, request)
            return Response(_json(first), media_type="application/json")
    except GaveWay as gave_way:  # before it began
        first = gave_way
    except Gone:
        work.stop()
        return Response(status_code=499)  # nobody reads it
    except BaseException as error:
        work.stop()
        if isinstance(error, Exception):
            raise refusal_of(error, body) from error
        raise
    chunks = _events(work, body, first)
    return EventSourceResponse(
        chunks,
        sep="\n",
        ping_message_factory=stock._ping_message_factory,
        shutdown_grace_period=GRACE,  # else it is cut before its work, which the service stops, says why
    )


def _job(service: Service, body: Any, call: Any) -> Job:
    def job(work: Work) -> Generator[Any, None, None]:
        models = service.models
        llm = models(body.model)
        require_grammars(llm, body)
        if body.logit_bias and body.logit_bias_type != "tokens":  # those are texts
            require_bias(body.logit_bias, llm.n_vocab())
        wanted = retention_of(settings_for(body, models.usual, models.archive_file))
        if wanted is not None:
            wanted.caps_for(llm.shape, llm.n_ctx())  # refuses what does not fit the model
        asked = Asked(wanted, lambda: work.tell(_READY))
        kwargs = body.model_dump(exclude=_UNUSED | NEW_FIELDS, warnings=False)
        if "messages" in kwargs:
            kwargs["messages"] = body.messages  # with the marks that stock's types do not know
        stock.prepare_request_resources(body, models, body.model, kwargs)
        try:
            with told(llm, getattr(body, "chat_template_kwargs", None)), llm.answered(asked):
                made = call(llm, **kwargs)
                if body.stream:
                    yield from _streamed(made, body, asked, work)
                else:
                    yield add_bytes(Calls().mended(made, asked.end)) | {"usage": asked.usage()}
        finally:
            service.count(asked)

    return job


def _streamed(made: Iterator[Any], body: Any, asked: Asked, work: Work) -> Generator[Any, None, None]:
    last: Any = None
    calls = Calls()
    more = {"usage": None} if body.includes_usage else {}
    try:
        with closing(made):  # type: ignore[type-var]
            for chunk in made:
                last = add_bytes(calls.mended(chunk, asked.end))
                yield last | more
    except Cancelled:
        if last is None or not work.gave_way:
            raise
        yield last | _cut(body) | more
    if body.includes_usage and last is not None:
        yield last | {"choices": [], "usage": asked.usage()}


def _cut(body: Any) -> dict[str, Any]:
    """The choices of a chunk that ends an answer, as one that has reached its length."""
    rest: dict[str, Any] = {"delta": {}} if isinstance(body, ChatBody) else {"text": ""}
    return {"choices": [{"index": 0, **rest, "logprobs": None, "finish_reason": "length"}]}


def _unread(body: Any) -> Iterator[dict[str, Any]]:
    """Chunks of a stream that has given way before its prompt was read."""
    chats = isinstance(body, ChatBody)
    common = {
        "id": f"{'chatcmpl' if chats else 'cmpl'}-{uuid4()}",
        "object": "chat.completion.chunk" if chats else "text_completion",
        "created": int(time()),
        "model": body.model,
    }
    yield common | _cut(body) | ({"usage": None} if body.includes_usage else {})
    if body.includes_usage:
        yield common | {"choices": [], "usage": Asked(None).usage()}


def _json(found: Any) -> str:
    return json.dumps(found, default=_logprob)  # those of the tokens of a prompt are numpy's


def _logprob(found: Any) -> float:
    return max(float(found), LEAST)


async def _events(work: Work, body: Any, first: Any) -> AsyncIterator[dict[str, str]]:
    begun = False
    try:
        try:
            item = first
            while True:
                if isinstance(item, GaveWay):
                    raise item
                if item is not _READY:
                    begun = True
                    yield {"data": _json(item)}
                item = await work.next()
        except (StopAsyncIteration, GaveWay) as end:
            if isinstance(end, GaveWay) and not begun:
                for chunk in _unread(body):
                    yield {"data": _json(chunk)}
            yield {"data": "[DONE]"}
        except Exception as error:  # it is too late for another status
            yield {"data": _json(refusal_of(error, body).body())}
    finally:
        work.stop()


class Gone(Exception):
    """The client has left."""


async def next_unless_gone(work: Work, request: Request) -> Any:
    """What the work makes next. Raises Gone as soon as nobody waits for it any more."""
    made = asyncio.ensure_future(work.next())
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((made, left), return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            raise Gone
        return made.result()
    finally:
        for task in (made, left):
            task.cancel()
            with suppress(BaseException):
                await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
