"""Makes the Python side of the C API: `python build_abi.py FOLDER _abi.py`, of the headers in the folder.

Run by the build with only cffi installed; not imported by the package.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi

BEGIN, END = "// cdef begin", "// cdef end"

HEADERS = ("headkv.h", "headkv-plan.h", "headkv-session.h")

# what is called of llama.h, ggml-backend.h and gguf.h of the pinned llama.cpp; enums as the int that they are
GGML = """
void llama_backend_init(void);

struct ggml_backend_feature { const char * name; const char * value; };
size_t ggml_backend_dev_count(void);
void * ggml_backend_dev_get(size_t index);
const char * ggml_backend_dev_name(void * device);
const char * ggml_backend_dev_description(void * device);
void ggml_backend_dev_memory(void * device, size_t * free, size_t * total);
int ggml_backend_dev_type(void * device);
void * ggml_backend_reg_by_name(const char * name);
void * ggml_backend_reg_get_proc_address(void * reg, const char * name);

struct gguf_context;
struct gguf_init_params { _Bool no_alloc; void * ctx; };
struct gguf_context * gguf_init_from_file(const char * path, struct gguf_init_params params);
void gguf_free(struct gguf_context * ctx);
int64_t gguf_get_n_kv(const struct gguf_context * ctx);
int64_t gguf_find_key(const struct gguf_context * ctx, const char * key);
const char * gguf_get_key(const struct gguf_context * ctx, int64_t id);
int gguf_get_kv_type(const struct gguf_context * ctx, int64_t id);
int gguf_get_arr_type(const struct gguf_context * ctx, int64_t id);
size_t gguf_get_arr_n(const struct gguf_context * ctx, int64_t id);
const void * gguf_get_arr_data(const struct gguf_context * ctx, int64_t id);
const void * gguf_get_val_data(const struct gguf_context * ctx, int64_t id);
const char * gguf_get_val_str(const struct gguf_context * ctx, int64_t id);
int64_t gguf_remove_key(struct gguf_context * ctx, const char * key);
void gguf_set_kv(struct gguf_context * ctx, const struct gguf_context * from);
size_t gguf_get_data_offset(const struct gguf_context * ctx);
size_t gguf_get_meta_size(const struct gguf_context * ctx);
void gguf_get_meta_data(const struct gguf_context * ctx, void * data);
"""


def cdef_of(header: str) -> str:
    """The declarations between the two markers of a header, without the export macro."""
    if header.count(BEGIN) != 1 or header.count(END) != 1 or header.index(BEGIN) > header.index(END):
        raise SystemExit(f"the header must hold '{BEGIN}' and then '{END}', each once")
    body = header[header.index(BEGIN) + len(BEGIN) : header.index(END)]
    return body.replace("HEADKV_API ", "")


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise SystemExit("usage: build_abi.py FOLDER OUTPUT")
    folder, output = (Path(argument) for argument in arguments)
    headers = [(folder / name).read_text(encoding="utf-8") for name in HEADERS]
    ffi = cffi.FFI()
    ffi.cdef("".join(map(cdef_of, headers)) + GGML)
    ffi.set_source("headkv_local._core.native._abi", None)
    ffi.emit_python_code(str(output))
    names = re.findall(r"^HEADKV_API .*?(headkv_\w+)\(", "".join(headers), re.MULTILINE)
    with output.open("a", encoding="utf-8") as file:
        file.write(f"SURFACE = {tuple(names)!r}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
