"""Tiny models of many architectures: one file per kind of memory or of attention."""

from typing import Any

from .dense import DENSE
from .encoders import ENCODERS
from .family import Family, add_keys, common_keys
from .gemma import GEMMA
from .hybrid import HYBRID
from .latent import LATENT
from .mixture import MIXTURE
from .parts import PARTS
from .recurrent import RECURRENT
from .sliding import SLIDING
from .tensors import fused, tensors_of
from .weights import values_of

FAMILIES: dict[str, Family] = (
    DENSE | MIXTURE | GEMMA | SLIDING | HYBRID | RECURRENT | LATENT | ENCODERS | PARTS
)

VARIANTS: dict[str, dict[str, Any]] = {
    **{arch: {"arch": arch} for arch, family in FAMILIES.items() if family.decodes},
    "gemma3-full": {"arch": "gemma3", "window": 0},
    "gemma4-512": {"arch": "gemma4", "head_dim": 512},
    "gemma4-shared": {"arch": "gemma4", "n_layer": 9},
    "olmo2-full": {"arch": "olmo2", "window": 0},
}
"""Fields of a TinyModel, by a name for it: all that decode, and what else the architectures can be."""

DEEP: dict[str, dict[str, Any]] = {
    "baichuan of 40 layers, 13B": {"arch": "baichuan", "n_layer": 40},
    "exaone4 of 64 layers, 32B": {"arch": "exaone4", "n_layer": 64},
}
"""Architectures that are others with so many layers: too slow to be among VARIANTS."""

__all__ = [
    "DEEP",
    "FAMILIES",
    "VARIANTS",
    "Family",
    "add_keys",
    "common_keys",
    "fused",
    "tensors_of",
    "values_of",
]
