"""What llama.cpp has a name for and does not run by itself: drafts, which read what another model computes,
parts of other programs, and names without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys

if TYPE_CHECKING:
    from gguf_factory import TinyModel


def _target(model: TinyModel) -> Keys:
    """Which layers of the other model are read."""
    return {"target_layers": [0, 1, 2], "target_hidden_size": model.n_embd}


def _vocoder(model: TinyModel) -> Keys:
    """Sound from tokens."""
    return {
        "features_length": model.n_embd,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "posnet.embedding_length": model.n_embd,
        "posnet.block_count": model.layers,
        "convnext.embedding_length": model.n_embd,
        "convnext.block_count": model.layers,
    }


PARTS: dict[str, Family] = {
    **{name: Family(loads=False, decodes=False) for name in ("clip", "gptj")},
    "eagle3": Family(keys=_target, n_layer=1, decodes=False),
    "dflash": Family(keys=_target, decodes=False),
    "wavtokenizer-dec": Family(keys=_vocoder, n_layer=6, decodes=False),
}
