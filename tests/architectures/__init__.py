"""Tiny models of many architectures: one file per kind of memory or of attention."""

from .dense import DENSE
from .family import Family, add_keys, common_keys
from .gemma import GEMMA
from .hybrid import HYBRID
from .latent import LATENT
from .mixture import MIXTURE
from .recurrent import RECURRENT
from .sliding import SLIDING
from .tensors import tensors_of
from .weights import values_of

FAMILIES: dict[str, Family] = DENSE | MIXTURE | GEMMA | SLIDING | HYBRID | RECURRENT | LATENT

__all__ = ["FAMILIES", "Family", "add_keys", "common_keys", "tensors_of", "values_of"]
