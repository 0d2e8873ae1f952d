"""What PyInstaller asks for, by an entry point, when a program that imports headkv_local is packed."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folder with the files that PyInstaller runs: hook-NAME.py where NAME is imported."""
    return [str(Path(__file__).parent)]
