"""The headkv-server command: settings, an address, and a server until it is stopped."""

from __future__ import annotations

import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from ..errors import ArgumentError, HeadKVError
from ..exits import FAILED, INTERRUPTED, OK, told


def main(argv: list[str] | None = None) -> int:
    """See headkv_local.server.main()."""
    try:
        import fastapi  # noqa: F401
        import pydantic_settings  # noqa: F401
        import sse_starlette  # noqa: F401
        import starlette_context  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        print(f"headkv-server: {error.name} is missing: pip install 'headkv-local[server]'", file=sys.stderr)
        return FAILED
    from .args import build_parser, parse

    parser = build_parser()
    try:
        server, models = parse(list(sys.argv[1:] if argv is None else argv), parser)
        return _serve(server, models)
    except (HeadKVError, OSError) as error:
        return told(error, "headkv-server")


def _serve(settings: Any, models: Any) -> int:
    import uvicorn

    from .app import create_app
    from .logs import configure
    from .network import listening, require_key, url_of
    from .service import GRACE

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """A prompt of minutes is not waited for, nor a model that is loaded."""
            service.stop()
            super().handle_exit(sig, frame)

    require_key(settings.host, settings.api_key)
    _require_certificate(settings.ssl_certfile, settings.ssl_keyfile)
    app = create_app(settings, models)
    service = app.state.service
    verbose = any(m.verbose for m in models)
    configure(verbose)
    with listening(settings.host, settings.port) as listener:
        config = uvicorn.Config(
            app,
            ssl_keyfile=settings.ssl_keyfile,
            ssl_certfile=settings.ssl_certfile,
            log_level="info" if verbose else "warning",
            timeout_graceful_shutdown=GRACE,
            server_header=False,
            use_colors=False,  # it would ask standard output, which may be closed
        )
        server = Server(config)

        def leave() -> None:
            server.should_exit = True

        def end(*_: Any) -> None:
            service.stop()
            leave()

        def end_soon() -> None:
            """In another thread."""
            if service.loop is None:
                end()
            else:
                with suppress(RuntimeError):  # the loop has ended
                    service.loop.call_soon_threadsafe(end)

        service.on_failure = leave
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, end)  # the terminal was closed: conversations are saved
        if settings.stop_with_stdin:
            threading.Thread(target=_watch_stdin, args=(end_soon,), daemon=True).start()
        print(f"headkv-server listens on {url_of(listener, settings.ssl_certfile is not None)}", flush=True)
        code = OK
        try:
            server.run([listener])
        except KeyboardInterrupt:
            code = INTERRUPTED
        if service.loading:
            os._exit(code)  # Python's own end would wait for the thread that loads
    if service.failed is not None:
        print(f"headkv-server: {service.failed}", file=sys.stderr)
        return FAILED
    return code


def _require_certificate(certificate: str | None, key: str | None) -> None:
    """Raise ArgumentError for files of HTTPS that cannot be used, before an address is told."""
    if certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:  # ssl's own too
        reason = error.strerror or error
        raise ArgumentError(
            f"--ssl-certfile {certificate} and --ssl-keyfile {key} cannot be used: {reason}"
        ) from None


def _watch_stdin(end: Callable[[], None]) -> None:
    with suppress(OSError):  # a terminal that is gone
        # not sys.stdin.read(): Python aborts if a thread still holds the lock of sys.stdin when it ends
        while sys.stdin is not None and os.read(sys.stdin.fileno(), 4096):
            pass
    end()
