"""Print the path of the pinned llama-cpp-python sdist, fetched into the user's cache folder if need be.

Runs with the standard library and pip alone, before anything is built.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PIN = Path(__file__).parent.parent / "llama-cpp.pin"


def read_pin() -> dict[str, str]:
    lines = (line.split() for line in PIN.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, value in lines}


def cache_folder() -> Path:
    if base := os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA"):
        return Path(base) / "headkv-local"
    return Path.home() / ".cache" / "headkv-local"


def has_hash(path: Path, sha256: str) -> bool:
    if not path.exists():
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == sha256


def fetch(version: str, sha256: str, target: Path) -> None:
    """Download with pip by name and hash; `target` appears complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"llama-cpp-python=={version} --hash=sha256:{sha256}\n")
        # pip unpacks the sdist to ask for its metadata: what that needs must not be held to the hashes above
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes"]
        command += ["--dest", folder, "--requirement", str(requirements)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (Path(folder) / target.name).rename(target)


def main() -> int:
    pin = read_pin()
    version, sha256 = pin["LLAMA_CPP_PYTHON_VERSION"], pin["LLAMA_CPP_PYTHON_SHA256"]
    target = cache_folder() / f"llama_cpp_python-{version}.tar.gz"

    if not has_hash(target, sha256):
        print(f"headkv: fetching llama-cpp-python {version} (76 MB) into {target.parent}", file=sys.stderr)
        try:
            fetch(version, sha256, target)
        except (OSError, subprocess.CalledProcessError) as error:
            print(
                f"headkv: could not fetch llama-cpp-python {version} (no network, no disk space, or no pip: "
                f"{error}); try again, or give a tree of llama.cpp {pin['LLAMA_CPP_COMMIT']} "
                "with -DHEADKV_LLAMA_CPP_SOURCE_DIR=...",
                file=sys.stderr,
            )
            return 1

    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
