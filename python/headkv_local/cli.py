"""The `headkv` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .exits import interrupted, interrupting, open_streams, print_any_letter, say_no_more, told

_EVAL = "eval"


class _Parser(argparse.ArgumentParser):
    """Of a command and of each below it: what it does not know it refuses itself, with its own usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed, 2 wrong usage, 129 by SIGHUP, 130 interrupted, 143 by SIGTERM."""
    open_streams()
    print_any_letter()
    try:
        with interrupting():
            return _run(argv)
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)


def _run(argv: Sequence[str] | None) -> int:
    from . import __version__, sdk
    from .bench import command as bench
    from .doctor import command as doctor
    from .scoresfile import command as scoresfile
    from .scoring import command as scoring

    arguments = bench.with_default(list(sys.argv[1:] if argv is None else argv))
    if arguments[:1] == [_EVAL]:  # its options are lm_eval's
        from .eval.__main__ import main as evaluate

        return evaluate(arguments[1:])
    parser = _Parser(prog="headkv", description="Tools around headkv-local.")
    parser.add_argument("--version", action="version", version=f"headkv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bench.add_parser(commands)
    scoring.add_parser(commands)
    scoresfile.add_parser(commands)
    doctor.add_parser(commands)
    sdk.add_parser(commands)
    commands.add_parser(_EVAL, help="lm-evaluation-harness with our model and tasks", add_help=False)
    options = parser.parse_args(arguments)
    from .errors import HeadKVError

    try:
        code: int | None = options.run(options)
    except BrokenPipeError:  # whoever read our output has seen enough
        say_no_more()
        return 0
    except (HeadKVError, OSError) as error:
        return told(error)
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
