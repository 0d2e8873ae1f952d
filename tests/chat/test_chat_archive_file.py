"""A chat whose archive is in a file that --archive names."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_driver import ENDLESS, TIMEOUT, end, start


def test_a_full_disk(text: str, tiny_path: Path, tmp_path: Path) -> None:
    document = tmp_path / "document"
    document.write_text(text[:2000])
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    code = f"import sys; {limit}; from headkv_local.chat import main; sys.exit(main())"
    path = tmp_path / "archive"
    ask = [str(tiny_path), "-f", str(document), "-p", "Why?", "-t", "1", "--archive", str(path), "-n", "4"]
    done = subprocess.run(
        [sys.executable, "-c", code, *ask], capture_output=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
    )
    notice, stats, *_ = done.stderr.decode().splitlines()
    assert done.returncode == 0
    assert notice == (
        f"The chat goes on without an archive: the archive {path} cannot be written: File too large."
    )
    assert "kept" in stats
    assert "archive" not in stats
    assert not path.exists()


def test_a_file_that_cannot_be_made(
    chat: Callable[..., subprocess.CompletedProcess[str]], tiny_path: Path, tmp_path: Path
) -> None:
    document = tmp_path / "document"
    document.write_text("mine")
    done = chat(str(tiny_path), "-p", "Why?", "--archive", str(document))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {document} is another file, not an archive of a KV cache: it stays as it is\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_file_goes_with_the_process(
    environment: dict[str, str], tmp_path: Path, smollm2: Path, number: int
) -> None:
    path = tmp_path / "archive"
    process = start(
        [str(smollm2), "-p", "Write a very long story about a river.", *ENDLESS, "--archive", str(path)],
        environment,
        tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    assert path.exists()
    process.send_signal(number)
    end(process)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert not path.exists()
