"""What is said to a client when something is wrong: a status, and one sentence in OpenAI's form."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from llama_cpp.server.errors import RouteErrorHandler
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import (
    ArchiveError,
    ArgumentError,
    Cancelled,
    ContextFullError,
    GrammarError,
    HeadKVError,
    ModelError,
    OutOfMemoryError,
    SchemaError,
    SessionError,
    ToolChoiceError,
    UnsupportedError,
)

_logger = logging.getLogger("headkv_local.server")

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ABOUT: Final = {
    "message ": "messages",
    "the grammar ": "grammar",
    "the parameters of the tool ": "tools",
    "the model's chat template ": "messages",
}
"""Sentences that begin with something else than the field that they are about."""
_SHOULD: Final = "Input should be "
_SHOWN: Final = 200  # characters of what a client sent that are shown to it again


class Refusal(Exception):
    """A request is not answered; args[0] is the sentence that says why."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    def body(self) -> dict[str, Any]:
        usual = "invalid_request_error" if self.status < 500 else "internal_server_error"
        error = {
            "message": str(self.args[0]).encode("utf-8", "backslashreplace").decode("utf-8"),
            "type": _TYPES.get(self.status, usual),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def refusal_of(error: BaseException, body: Any = None) -> Refusal:
    """What a client is told of an exception. body: of a completion, whose numbers stock's texts name.

    What sentences are about stands at their beginning: there is the field, where nobody has named it.
    """
    refusal = _refusal_of(error, body)
    if refusal.status == 400 and refusal.param is None:
        text = str(refusal)
        given = (
            error.body if isinstance(error, RequestValidationError) else getattr(body, "model_fields_set", ())
        )
        about = next((field for start, field in _ABOUT.items() if text.startswith(start)), None)
        name = about or text.partition(" ")[0].rstrip(":")
        refusal.param = name if isinstance(given, dict | set) and name in given else None
    return refusal


def _refusal_of(error: BaseException, body: Any) -> Refusal:
    if isinstance(error, HTTPException) and isinstance(error.__cause__, Refusal | ClientDisconnect):
        error = error.__cause__  # while FastAPI read the body
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ClientDisconnect):
        return Refusal(499, "the client has left")
    if isinstance(error, RequestValidationError):
        first = _telling(error.errors())
        if isinstance(cause := first.get("ctx", {}).get("error"), SchemaError):
            return _refusal_of(cause, body)
        place = _place(error.errors()) if first["type"] != "json_invalid" else None
        return Refusal(400, sentence_of(error.errors()), param=place)
    if isinstance(error, HTTPException) and error.status_code == 400 and error.__cause__ is not None:
        return Refusal(400, "the body is no JSON that can be read")
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, ContextFullError) and body is not None:
        for pattern, told in RouteErrorHandler.pattern_and_formatters.items():
            if (found := pattern.search(str(error))) is not None:
                most = None if body.max_tokens == -1 else body.max_tokens
                status, stock = told(body.model_copy(update={"max_tokens": most}), found)
                text = stock["message"]
                for unsaid in (", None in the completion", "; None for the completion"):
                    text = text.replace(unsaid, "")
                place = "messages" if hasattr(body, "messages") else "prompt"
                return Refusal(status, text, stock["code"], place)
    if isinstance(error, ContextFullError):
        return Refusal(400, str(error), "context_length_exceeded")
    if isinstance(error, Cancelled):
        return Refusal(503, "the request was cancelled")
    if isinstance(error, ArchiveError | SessionError):
        return Refusal(503, str(error), "storage_failed")
    if isinstance(error, OutOfMemoryError):
        return Refusal(503, str(error), "out_of_memory")
    if isinstance(error, SchemaError | GrammarError):
        return Refusal(
            400, str(error), "invalid_schema" if isinstance(error, SchemaError) else "invalid_grammar"
        )
    if isinstance(error, ToolChoiceError):
        text = f"tool_choice: there is no tool {error.name!r} among the tools"
        return Refusal(400, text, param="tool_choice")
    if isinstance(error, ArgumentError | ModelError | UnsupportedError):
        return Refusal(400, str(error))
    if isinstance(error, HeadKVError):
        _logger.error("%s", error)
        return Refusal(500, str(error))
    if isinstance(error, UnicodeEncodeError):
        return Refusal(400, "a text has half a character, which is no text in UTF-8")
    if isinstance(error, ValueError) and str(error):  # llama_cpp refuses arguments with it
        return Refusal(400, str(error))
    _logger.error("a request failed: %s", error, exc_info=error)
    return Refusal(500, f"an internal error: {type(error).__name__}")


def sentence_of(errors: Sequence[Any]) -> str:
    """What is wrong with a body, of pydantic's list."""
    first = _telling(errors)
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}"
    if first["type"] == "model_attributes_type" and isinstance(first["input"], bytes):
        return "the body is not taken for JSON: the request needs the header Content-Type: application/json"
    known = first["type"] == "value_error"  # which says in its own words what of the body it is about
    message = str(first["msg"]).removeprefix("Value error, ") if known else _all_forms(first, errors)
    text = message if known else f"{_place(errors) or 'body'}: {message}"
    return text if len(text) <= 2 * _SHOWN else text[: 2 * _SHOWN] + "..."


def _all_forms(first: Any, errors: Sequence[Any]) -> str:
    """What pydantic says of an input, with what else it might be: it tells of each branch of a union."""
    others = (one["msg"] for one in errors if _names(one) == _names(first))
    known = dict.fromkeys(text.removeprefix(_SHOULD) for text in others if text.startswith(_SHOULD))
    return _SHOULD + ", or ".join(known) if str(first["msg"]).startswith(_SHOULD) else str(first["msg"])


def _telling(errors: Sequence[Any]) -> Any:
    """Of an input pydantic tells why it is none of each form. The one that fails deepest is meant; of
    messages those of other roles do not count."""
    others = [
        one["loc"][:-1] for one in errors if one["type"] == "literal_error" and one["loc"][-1] == "role"
    ]
    told = [one for one in errors if not any(one["loc"][: len(loc)] == loc for loc in others)] or errors
    first = _names(told[0])
    return max((one for one in told if _names(one)[: len(first)] == first), key=lambda one: len(_names(one)))


def _place(errors: Sequence[Any]) -> str | None:
    return ".".join(_names(_telling(errors))) or None


def _names(error: Any) -> list[str]:
    """Where it is, without the branches of unions, which pydantic names by their types."""
    names = [str(part) for part in error["loc"] if part != "body"]
    kept = [name for name in names if name.isdecimal() or (name.islower() and name.isidentifier())]
    return [name for name in kept if name not in ("int", "float", "str")]


class Route(APIRoute):
    """A route whose exceptions become refusals, as stock's RouteErrorHandler does it for some of them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as error:
                return refusal_of(error).response()

        return handled
