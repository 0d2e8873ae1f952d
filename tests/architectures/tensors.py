"""Which tensors a model has: what llama.cpp's loader asks for, told its metadata alone."""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import llama_cpp
from llama_cpp import llama_cpp as bindings

import headkv_local.llama  # noqa: F401  (whose llama_cpp it is, and who gets its log lines)

_QUANTIZATION = re.compile(r"(?<!gate_inp)\.(input_)?scale")  # of matrices in four bits: others have none
_GGML = bindings._lib  # ggml's own functions are found through it


class TensorHead(ctypes.Structure):
    """The first fields of a ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


_GGML.gguf_init_from_file.argtypes = (ctypes.c_char_p, _InitParams)
_GGML.gguf_init_from_file.restype = ctypes.c_void_p
_GGML.gguf_free.argtypes = (ctypes.c_void_p,)
_GGML.gguf_free.restype = None
_GGML.ggml_get_name.argtypes = (ctypes.c_void_p,)
_GGML.ggml_get_name.restype = ctypes.c_char_p


def name_of(tensor: int) -> str:
    """Of a ggml_tensor at an address."""
    return str(_GGML.ggml_get_name(tensor).decode())


def fused(tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """With one matrix in place of a layer's Q, K and V, which llama.cpp takes as well."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (n, *rest) in tensors.items():
        joint = re.sub(r"attn_[qkv]\.", "attn_qkv.", name)
        found[joint] = (found.get(joint, (0,))[0] + n, *rest)
    return found


def tensors_of(arch: str, add_metadata: Callable[[gguf.GGUFWriter], None]) -> dict[str, tuple[int, ...]]:
    """Names and shapes, the rows of a matrix first. Optional ones are among them, but for
    scales of quantized matrices. ValueError if llama.cpp takes no such model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata.gguf"
        writer = gguf.GGUFWriter(path, arch)
        add_metadata(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        metadata = _GGML.gguf_init_from_file(str(path).encode(), _InitParams(no_alloc=True))
    found: dict[str, tuple[int, ...]] = {}

    def note(tensor: int, _: object) -> None:
        shape = list(TensorHead.from_address(tensor).ne)
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        if not _QUANTIZATION.search(name := name_of(tensor)):
            found[name] = tuple(reversed(shape))

    callback = bindings.llama_model_set_tensor_data_t(note)
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mtp = True  # of draft heads too, which are in files though they are not loaded
    model = llama_cpp.llama_model_init_from_user(metadata, callback, None, params)
    _GGML.gguf_free(metadata)
    if not model:
        raise ValueError(f"llama.cpp takes no {arch} model with this metadata")
    llama_cpp.llama_model_free(model)
    return found
