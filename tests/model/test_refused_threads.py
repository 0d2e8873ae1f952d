"""A system that gives no more threads: the answer is the same, from fewer of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

# refuses the threads of ggml, from the n-th on, and nobody else's
REFUSES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
typedef int (*create_t)(void *, const void *, void *(*)(void *), void *);
int pthread_create(void * thread, const void * attr, void * (*run)(void *), void * arg) {
    static int n_made;
    Dl_info info;
    const int from_ggml = dladdr(__builtin_return_address(0), &info) && strstr(info.dli_fname, "libggml-cpu");
    if (from_ggml && n_made++ >= atoi(getenv("REFUSED_FROM"))) {
        return EAGAIN;
    }
    return ((create_t) dlsym(RTLD_NEXT, "pthread_create"))(thread, attr, run, arg);
}
"""

CODE = """
import sys
from headkv_local import Llama
with Llama(sys.argv[1], n_ctx=512, n_threads=4, n_threads_batch=4) as llm:
    print([token for _, token in zip(range(20), llm.generate(list(range(100)), temp=0.0))])
"""


@pytest.mark.skipif(sys.platform != "linux" or not which("cc"), reason="needs LD_PRELOAD and cc")
def test_threads_that_are_refused_change_no_answer(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "refuses.c").write_text(REFUSES)
    library = tmp_path / "refuses.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "refuses.c", "-ldl"], check=True)
    answers = [
        subprocess.run(
            [sys.executable, "-c", CODE, tiny_path],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"LD_PRELOAD": str(library), "REFUSED_FROM": refused_from},
        ).stdout
        for refused_from in ("1000000", "5", "0")
    ]
    assert len(set(answers)) == 1
    assert answers[0].count(",") == 19
