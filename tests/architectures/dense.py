"""Transformers whose layers all have full attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, mixed_heads, multi_head, sections, with_keys
from .sliding import windows

if TYPE_CHECKING:
    from gguf_factory import TinyModel

_BIAS = r"attn_.*\.bias|ffn_.*\.bias"


def _alibi(model: TinyModel) -> Keys:
    return {"attention.max_alibi_bias": 16.0, "attention.clamp_kqv": 8.0}


def _some_without(model: TinyModel) -> Keys:
    """Attention, none, attention, a matrix in its place, nothing at all, attention."""
    kinds = [il % 6 for il in range(model.layers)]
    return {
        "attention.head_count": [model.n_head if kind in (0, 2, 3, 5) else 0 for kind in kinds],
        "attention.head_count_kv": [model.n_head_kv if kind in (0, 2, 5) else 0 for kind in kinds],
        "feed_forward_length": [model.n_ff if kind != 4 else 0 for kind in kinds],
    }


def _apertus(model: TinyModel) -> Keys:
    return {
        "xielu.alpha_n": [0.8] * model.layers,
        "xielu.alpha_p": [0.8] * model.layers,
        "xielu.beta": [0.5] * model.layers,
        "xielu.eps": [1e-6] * model.layers,
    }


def _adapters(model: TinyModel) -> Keys:
    """One that a token asks for, which random_tokens(300) has once: of two, a layer of attention would choose
    by a mean that lies between them."""
    return {
        "adapters.count": 1,
        "adapters.lora_rank": 4,
        "adapters.token_ids_activate": [145],
        "adapters.token_ids_substitute": [65],
    }


_PLAIN = (
    "falcon starcoder qwen plamo codeshell orion internlm2 minicpm starcoder2 xverse olmo chatglm "
    "glm4 bitnet jais2 nemotron exaone arcee ernie4_5 hunyuan-dense hunyuan_vl smollm3 seed_oss "
    "pangu-embedded mistral3 maincoder nanbeige stablelm phi2 command-r qwen2 gemma cogvlm pockettts"
).split()

DENSE: dict[str, Family] = {name: Family() for name in _PLAIN} | {
    "llama": Family(without=_BIAS),
    "qwen3": Family(without=_BIAS),
    "qwen2vl": Family(keys=sections),
    "qwen3vl": Family(keys=with_keys(sections, n_deepstack_layers=0)),
    "hrm_text": Family(keys=with_keys(hrm__layers_per_stack=2, hrm__h_cycles=1, hrm__l_cycles=1), n_layer=4),
    # fewer tokens than its 3072 outputs are refused, further ones have logits of minus infinity
    "qwen3tts": Family(keys=sections, n_vocab=3072),
    "paddleocr": Family(keys=sections),
    "exaone4": Family(keys=lambda model: windows(model) if model.layers == 64 else {}, without=_BIAS),
    "phi3": Family(
        keys=lambda model: {"attention.sliding_window": model.window}, without=r"bias", fused=True
    ),
    "deci": Family(keys=mixed_heads, n_layer=4),
    "deci-without": Family(arch="deci", about="with layers without attention", keys=_some_without, n_layer=6),
    "openelm": Family(keys=mixed_heads, n_layer=4),
    "gpt2": Family(keys=multi_head),
    "gptneox": Family(keys=with_keys(multi_head, use_parallel_residual=True)),
    "granite": Family(keys=with_keys(logit_scale=1.0)),
    # llama.cpp masks the logits of images, tokens 4 to 8195, also in a ubatch that asks for no logits: an
    # assertion ends the process
    "chameleon": Family(n_vocab=8196 + 256, decodes=False),
    "graniteswitch": Family(keys=with_keys(_adapters, logit_scale=1.0)),
    "talkie": Family(keys=with_keys(multi_head, logit_scale=1.0)),
    "apertus": Family(keys=_apertus),
    "mpt": Family(keys=with_keys(multi_head, _alibi), without=r"bias|attn_[qk]_norm|ffn_act"),
    "bloom": Family(keys=with_keys(multi_head, _alibi)),
    "refact": Family(keys=_alibi),
    "jais": Family(keys=with_keys(multi_head, _alibi)),
    "baichuan": Family(keys=multi_head),
}
