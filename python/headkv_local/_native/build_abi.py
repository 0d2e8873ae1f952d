"""Makes the Python side of the C API: `python build_abi.py headkv.h _abi.py`.

Run by the build with only cffi installed; not imported by the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cffi

BEGIN, END = "// cdef begin", "// cdef end"


def cdef_of(header: str) -> str:
    """The declarations between the two markers of the header, without the export macro."""
    if header.count(BEGIN) != 1 or header.count(END) != 1 or header.index(BEGIN) > header.index(END):
        raise SystemExit(f"the header must hold '{BEGIN}' and then '{END}', each once")
    body = header[header.index(BEGIN) + len(BEGIN) : header.index(END)]
    return body.replace("HEADKV_API ", "")


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise SystemExit("usage: build_abi.py HEADER OUTPUT")
    header, output = (Path(argument) for argument in arguments)
    ffi = cffi.FFI()
    ffi.cdef(cdef_of(header.read_text(encoding="utf-8")))
    ffi.set_source("headkv_local._native._abi", None)
    ffi.emit_python_code(str(output))


if __name__ == "__main__":
    main(sys.argv[1:])
