"""`headkv eval`, `python -m headkv_local.eval`: the command line of lm_eval with our model and tasks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headkv_local import HeadKVError
from headkv_local.exits import FAILED, interrupted, told

TASKS = Path(__file__).parent / "tasks"


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 done, 1 failed, 2 wrong usage, 129 by SIGHUP, 130 interrupted, 143 by SIGTERM.

    One sentence where lm-eval is missing.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        from lm_eval import tasks
        from lm_eval.__main__ import cli_evaluate

        from . import model  # noqa: F401 - registers itself
    except ImportError as error:
        print(
            f"headkv: eval needs lm-eval 0.4.13 or newer ({error}): pip install 'headkv-local[eval]', or "
            "lm-eval by itself",
            file=sys.stderr,
        )
        return FAILED

    class WithOurs(tasks.TaskManager):  # type: ignore[misc] # lm_eval has no types
        """Knows our tasks too. A folder of --include_path, which takes one, stands beside theirs and ours."""

        def __init__(self, *args: Any, include_path: str | None = None, **others: Any) -> None:
            super().__init__(
                *args, include_path=[str(TASKS), *([include_path] if include_path else [])], **others
            )

    before, sys.argv = sys.argv, ["headkv eval", *arguments]
    theirs, tasks.TaskManager = tasks.TaskManager, WithOurs
    try:
        cli_evaluate()
    except HeadKVError as error:
        return told(error)
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.argv, tasks.TaskManager = before, theirs
    return 0


if __name__ == "__main__":
    sys.exit(main())
