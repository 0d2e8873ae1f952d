"""Memory and storage of this process, as Linux counts them. None on a system that does not tell."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_IO = Path("/proc/self/io")


def resident_bytes() -> int | None:
    return _field(_STATUS, "VmRSS")


def peak_resident_bytes() -> int | None:
    """The most since the process began."""
    return _field(_STATUS, "VmHWM")


def anonymous_bytes() -> int | None:
    """Resident memory that is not of files, which the system could give to others at any moment."""
    return _field(_STATUS, "RssAnon")


def storage_bytes() -> tuple[int, ...]:
    """Read from storage, and written or to be written there, also through mapped files; or empty."""
    found = [_field(_IO, name) for name in ("read_bytes", "write_bytes")]
    return tuple(n for n in found if n is not None)


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            value, *unit = line.partition(":")[2].split()
            return int(value) * (1024 if unit else 1)
    return None
