"""Which build of this package runs: answers that are put together must all be of one."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from ._core.library import library_dir, vendor_dir

_ANSWER_NOTHING: Final = ("chat", "demo", "doctor", "server")  # tools that nothing measures with


@cache
def build_id() -> str:
    """16 hex digits of the SHA-256 of the libraries and the Python files that answers depend on.

    Builds of one version differ where they were compiled otherwise, with other options or from other sources.
    """
    package = Path(__file__).resolve().parent
    modules = (path.relative_to(package) for path in package.rglob("*.py"))
    used = [package / path for path in modules if path.parts[0] not in _ANSWER_NOTHING]
    libraries = [path for path in library_dir().glob("*") if path.is_file()]
    found = hashlib.sha256()
    for path in sorted({*used, *vendor_dir().rglob("*.py"), *libraries}):
        found.update(f"\n{path.relative_to(package).as_posix()}\n".encode())
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                found.update(part)
    return found.hexdigest()[:16]
