"""Print include folder and library of the cuBLAS wheel, as "include;library"; installs the wheel if need be.

`python find_cublas.py MAJOR MINOR`, the version of the CUDA toolkit. Runs in the environment that the build
installs into; pip's own settings (PIP_FIND_LINKS, PIP_NO_INDEX) tell it where wheels are.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path


def wheel_for(major: int, minor: int) -> tuple[str, str]:
    """Name and version of the wheel that fits a toolkit; wheels before CUDA 13 have it in their name."""
    if major >= 13:
        return "nvidia-cublas", f"~={major}.{minor}.0"
    return f"nvidia-cublas-cu{major}", f"~={major}.{minor}.0"


def find(name: str, major: int) -> tuple[Path, Path] | None:
    """Include folder and library of an installed wheel for CUDA of this major version."""
    try:
        if version(name).split(".")[0] != str(major):
            return None
        paths = [Path(str(path.locate())) for path in files(name) or []]
    except PackageNotFoundError:
        return None
    headers = [path.parent for path in paths if path.name == "cublas_v2.h"]
    libraries = [path for path in paths if path.name.startswith("libcublas.so")]
    if not headers or not libraries or not headers[0].is_dir() or not libraries[0].is_file():
        return None
    return headers[0].resolve(), libraries[0].resolve()


def main(arguments: list[str]) -> int:
    major, minor = (int(argument) for argument in arguments)
    name, wanted = wheel_for(major, minor)
    found = find(name, major)
    if found is None:
        print(f"headkv: installing {name}{wanted}: this CUDA toolkit has no cuBLAS", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        result = subprocess.run([*command, "--no-deps", f"{name}{wanted}"], stdout=sys.stderr, check=False)
        found = find(name, major)
        if result.returncode != 0 or found is None:
            print(
                f"headkv: this CUDA toolkit has no cuBLAS, and {name}{wanted} could not be installed: "
                "install the toolkit's cuBLAS with its headers, or let PIP_FIND_LINKS name a folder with "
                "that wheel",
                file=sys.stderr,
            )
            return 1
    print(*found, sep=";")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
