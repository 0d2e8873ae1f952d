"""The exceptions of this package: one tree, each leaf also an exception of Python's own that fits."""

from __future__ import annotations


class HeadKVError(Exception):
    """Base of everything that this package raises on its own account."""


class ArgumentError(HeadKVError, ValueError):
    """A value or a shape that cannot be used; the text says which one would do."""


class DataError(ArgumentError):
    """A file that a tool was given holds what cannot be used; the text says where."""


class SchemaError(ArgumentError):
    """A JSON schema of an answer, or of a tool's parameters, that cannot be compiled."""


class GrammarError(ArgumentError):
    """A grammar that llama.cpp cannot compile."""


class ToolChoiceError(ArgumentError):
    """A chat whose model has to call a tool that it does not have; name: which one."""

    def __init__(self, *args: object, name: str = "") -> None:
        super().__init__(*args)
        self.name = name


class UnsupportedError(HeadKVError, NotImplementedError):
    """A model or a context of a kind whose KV cache cannot be compacted."""


class EncoderError(UnsupportedError):
    """A model that no text is generated with here: an encoder, one for embeddings, a vocabulary alone."""


class StateError(HeadKVError, RuntimeError):
    """The call does not fit what the context holds now, or the model has been closed."""


class OutOfMemoryError(HeadKVError, MemoryError):
    """Memory could not be had; what the KV cache held before the call is still there, but with load_state().

    setting: the argument of Llama that asks for less memory when it is smaller: "n_ctx", "n_gpu_layers"; ""
        where none does.
    """

    def __init__(self, *args: object, setting: str | None = None) -> None:
        super().__init__(*args)
        self.setting = setting


class ContextFullError(StateError, ValueError):
    """The tokens do not fit into the context. Also a ValueError, as llama-cpp-python raises here."""


class Cancelled(HeadKVError):
    """cancel() was called. The KV cache holds the tokens that were decoded until then; of a prompt that goes
    to an archive, those before it."""


class ModelError(HeadKVError, ValueError):
    """A model file that is missing or cannot be loaded."""


class TemplateError(ModelError):
    """The model's chat template fails, or leaves out what was asked; args[0] says no more than that."""

    def __str__(self) -> str:
        return f"{self.args[0]} (completions work without it)"


class AdapterError(ModelError, RuntimeError):
    """A LoRA adapter that is missing or cannot be used. Also what llama-cpp-python raises here."""


class LoadMemoryError(OutOfMemoryError, ValueError):
    """No memory for the model or its context. Also a ValueError, as llama-cpp-python raises here."""


class DecodeMemoryError(OutOfMemoryError, RuntimeError):
    """No memory to decode. Also a RuntimeError, as llama-cpp-python raises here."""


class BatchError(ArgumentError, RuntimeError):
    """A batch that llama.cpp refuses. Also a RuntimeError, as llama-cpp-python raises here."""


class TokensError(ArgumentError, TypeError):
    """What are no tokens. Also a TypeError, as llama-cpp-python raises here."""


class StateMismatchError(StateError, KeyError):
    """A saved state that does not fit. Also a KeyError: to llama-cpp-python's caches it is a miss."""

    __str__ = Exception.__str__  # a KeyError shows its text in quotes


class ScoresError(HeadKVError, ValueError):
    """Head scores that cannot be used: a damaged file, a key that breaks the format, or another model's."""


class ScoresAbsentError(ScoresError):
    """A GGUF file that holds no head scores."""


class ArchiveError(HeadKVError, OSError):
    """The archive's file cannot be made, written or read. The conversation can go on from what is kept."""


class SessionError(HeadKVError, OSError, ValueError):
    """A session file that cannot be used (damaged, of another format or model), or cannot be written."""

    damaged: bool = False
    """Whether nobody can use it, whatever the model and the version."""


class LibraryConflictError(HeadKVError, ImportError):
    """The native library is missing, of another ABI, or not the one that llama_cpp has loaded."""


class InternalError(HeadKVError, RuntimeError):
    """Something went wrong inside the native library that is not the caller's doing."""
