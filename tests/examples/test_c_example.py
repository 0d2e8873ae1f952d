"""examples/c is built as strangers build it, against a prefix and the package, and answers as Python does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headkv_local import Llama, Retention, sdk
from helpers import last_logits

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "c"
BUILD = next((f for f in (ROOT / "build" / "cpu", ROOT / "build" / "cuda") if (f / "bin").is_dir()), None)
CC = shutil.which("cc")
QUESTIONS = ["Where does Mara live?", "What is the ferry's name?", "Who mends the nets?"]
TEXT = " ".join(
    f"On day {i} the harbour was quiet, and {who} came home late from the {what}."
    for i, (who, what) in enumerate(
        zip(["Mara", "Ole", "Ines"] * 14, ["ferry Aurora", "market"] * 21, strict=True)
    )
)
N_ANSWER = 32

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


def run(*command: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **settings},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `cmake --install` makes, moved afterwards, in a folder with a blank."""
    if BUILD is None:
        pytest.skip("no build folder: the package was installed from elsewhere")
    made = tmp_path_factory.mktemp("made") / "prefix"
    run(tool("cmake"), "--install", BUILD, "--prefix", made)
    assert sorted(path.name for path in made.iterdir()) == ["include", "lib", "share"]
    return made.rename(tmp_path_factory.mktemp("moved") / "a prefix")


def with_cmake(prefix: Path, folder: Path) -> Path:
    """The program, built and installed."""
    shutil.copytree(EXAMPLE, folder / "source")
    build, installed = folder / "build", folder / "installed"
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=str(Path(sys.executable).parent)) else []
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    flags = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_INSTALL_PREFIX={installed}"]
    flags.append("-DCMAKE_C_FLAGS=-Wall -Wextra -Werror -pedantic")
    run(tool("cmake"), *generator, "-S", folder / "source", "-B", build, *flags, **environment)
    run(tool("cmake"), "--build", build, **environment)
    run(tool("cmake"), "--install", build, **environment)
    shutil.rmtree(build)
    return installed / "bin" / "headkv-example"


def with_pkg_config(prefix: Path, folder: Path, *flags: str) -> Path:
    """The program, built by one call of the C compiler."""
    program = folder / "headkv-example"
    run(str(CC), "-std=c11", *flags, "-o", program, EXAMPLE / "main.c", *pkg_config(prefix, folder))
    return program


def pkg_config(prefix: Path, folder: Path) -> list[str]:
    """The compiler's flags, of the prefix as seen without blanks, which not every pkg-config can quote."""
    (folder / "sdk").symlink_to(prefix)
    found = {"PKG_CONFIG_PATH": str(folder / "sdk" / "lib" / "pkgconfig")}
    return run(tool("pkg-config"), "--cflags", "--libs", "headkv", **found).stdout.split()


def answers(program: Path, model: Path, folder: Path, **settings: str) -> str:
    document = folder / "document.txt"
    document.write_text(TEXT, encoding="utf-8")
    done = run(program, model, document, folder / "example.session", *QUESTIONS, **settings)
    assert "read" in done.stderr
    return done.stdout


def next_answer(llm: Llama, text: str) -> str:
    """Of the likeliest tokens, after the conversation so far and the text."""
    held = llm.input_ids[: llm.n_tokens].tolist()
    llm.prefill(held + llm.tokenize(text.encode(), add_bos=not held, special=False))
    tokens: list[int] = []
    while len(tokens) < N_ANSWER and (token := int(last_logits(llm).argmax())) != llm.token_eos():
        tokens.append(token)
        llm.eval([token])
    return b"".join(llm.detokenize([token]) for token in tokens).decode(errors="replace")


@pytest.fixture(scope="module")
def wanted(smollm2: Path) -> str:
    """What the Python class answers, reading the same tokens."""
    retention = Retention(budget="10%", archive="memory", scores="uniform")
    with Llama(smollm2, n_ctx=4096, n_batch=2048, retention=retention) as llm:
        asked = [f"\n\nQuestion: {question}\nAnswer:" for question in QUESTIONS]
        asked[0] = TEXT + asked[0]
        return "".join(f"{next_answer(llm, text)}\n" for text in asked)


def test_with_cmake(prefix: Path, smollm2: Path, wanted: str, tmp_path: Path) -> None:
    assert answers(with_cmake(prefix, tmp_path), smollm2, tmp_path) == wanted
    with Llama.open_session(tmp_path / "example.session", n_batch=2048) as llm:
        assert llm.cache_stats().archive_tokens > 0
        said = llm.detokenize(llm.input_ids[: llm.n_tokens].tolist()).decode()
        assert next_answer(llm, f"\n\nQuestion: {QUESTIONS[0]}\nAnswer:")
    answer = said.rpartition("Answer:")[2]  # the last one is saved too
    assert answer
    assert wanted.endswith(f"{answer}\n")


def test_it_is_found_through_a_linked_folder(prefix: Path, tmp_path: Path) -> None:
    """As /lib is one of /usr/lib: nothing beside the link is the prefix."""
    (tmp_path / "usr").symlink_to(prefix)
    (tmp_path / "lib").symlink_to("usr/lib")
    run(tool("cmake"), "-S", EXAMPLE, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tmp_path}")


def test_an_install_without_a_prefix_is_refused(prefix: Path, tmp_path: Path) -> None:
    """It would go where pip had the package built."""
    assert BUILD is not None
    command = [tool("cmake"), "--install", BUILD, "--prefix", tmp_path / "wheel" / "platlib"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "name where to install" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_goes_on_from_a_session_of_python(smollm2: Path, wanted: str, tmp_path: Path) -> None:
    session, document = tmp_path / "python.session", tmp_path / "document.txt"
    document.write_text("of another text", encoding="utf-8")
    retention = Retention(budget="10%", archive="memory", scores="uniform")
    with Llama(smollm2, n_ctx=4096, n_batch=2048, retention=retention) as llm:
        for text, question in zip((TEXT, ""), QUESTIONS[:2], strict=True):
            next_answer(llm, f"{text}\n\nQuestion: {question}\nAnswer:")
        llm.save_session(session)
    done = run(with_pkg_config(sdk.folder(), tmp_path), smollm2, document, session, QUESTIONS[2])
    assert len(done.stdout) > 1
    assert wanted.endswith(done.stdout)


def test_with_pkg_config(prefix: Path, smollm2: Path, wanted: str, tmp_path: Path) -> None:
    assert answers(with_pkg_config(prefix, tmp_path), smollm2, tmp_path) == wanted


@pytest.mark.parametrize("build", [with_cmake, with_pkg_config])
def test_with_the_packages_own_files(
    build: Callable[[Path, Path], Path], smollm2: Path, wanted: str, tmp_path: Path
) -> None:
    found = run(sys.executable, "-m", "headkv_local.cli", "sdk").stdout.strip()
    assert Path(found) == sdk.folder()
    assert answers(build(Path(found), tmp_path), smollm2, tmp_path) == wanted


def test_under_the_address_sanitizer(smollm2: Path, wanted: str, tmp_path: Path) -> None:
    """The program's own mistakes, and what the library does to its memory; not the library's leaks."""
    program = with_pkg_config(sdk.folder(), tmp_path, "-g", "-fsanitize=address,undefined")
    quiet = tmp_path / "leaks"
    quiet.write_text("leak:libggml\nleak:libllama\n")
    settings = {
        "ASAN_OPTIONS": "detect_leaks=1",
        "LSAN_OPTIONS": f"suppressions={quiet}:print_suppressions=0",
    }
    assert answers(program, smollm2, tmp_path, **settings) == wanted


def test_every_mistake_is_a_sentence(smollm2: Path, tiny_path: Path, tmp_path: Path) -> None:
    program = with_pkg_config(sdk.folder(), tmp_path)
    document, session = tmp_path / "document.txt", tmp_path / "x.session"
    document.write_text(TEXT, encoding="utf-8")

    def says(*arguments: Path | str) -> str:
        done = subprocess.run([program, *arguments], capture_output=True, errors="replace", timeout=300)
        assert done.returncode in (1, 2)
        return done.stderr

    assert says(smollm2, tmp_path / "none.txt", session, "Who?").startswith("usage: ")
    assert f"{document}: failed" in says(document, document, session, "Who?")
    document.write_text(TEXT * 40, encoding="utf-8")
    assert "the prompt: failed, or is too long" in says(tiny_path, document, session, "Who?")
    document.write_text(TEXT * 400, encoding="utf-8")
    assert f"{document}: failed, or is too long" in says(tiny_path, document, session, "Who?")
    document.write_text(TEXT[:500], encoding="utf-8")
    session.write_bytes(b"something else")
    assert "opening: the session" in says(tiny_path, document, session, "Who?", "Why?")
    assert session.read_bytes() == b"something else"


THROWS = r"""
#include <headkv.h>
#include <llama-cpp.h>
#include <cstdio>
#include <vector>

static bool fails = true;

static void show(void *, int32_t, int32_t) {
    if (fails) {
        throw 42;
    }
}

int main(int, char ** argv) {
    llama_backend_init();
    llama_model_ptr model(llama_model_load_from_file(argv[1], llama_model_default_params()));
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    llama_context_ptr ctx(llama_init_from_model(model.get(), params));
    headkv_retention keep;
    headkv_init_retention(&keep, sizeof(keep), nullptr);
    const std::vector<int32_t> tokens(300, 7);
    headkv_reading prompt = {};
    prompt.tokens = tokens.data();
    prompt.n_tokens = tokens.size();
    prompt.order = HEADKV_ORDER_ANY;
    prompt.progress = show;
    for (; ; fails = false) {
        const int32_t code = headkv_read(ctx.get(), &prompt, sizeof(prompt), &keep, sizeof(keep), nullptr, 0);
        printf("%d %s\n", code, headkv_last_error());
        if (!fails) {
            return 0;
        }
    }
}
"""


def test_no_exception_of_a_callback_leaves_the_library(tiny_path: Path, tmp_path: Path) -> None:
    """A C++ program too needs no more than the target or the flags."""
    (tmp_path / "throws.cpp").write_text(THROWS, encoding="utf-8")
    flags = pkg_config(sdk.folder(), tmp_path)
    run(tool("c++"), "-std=c++17", "-o", tmp_path / "throws", tmp_path / "throws.cpp", *flags)
    first, second = run(tmp_path / "throws", tiny_path).stdout.splitlines()
    assert first.startswith("-5 an exception")
    assert second.startswith("0 ")
