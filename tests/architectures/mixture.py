"""Transformers with experts, whose layers all have full attention."""

from __future__ import annotations

from .family import Family, experts, multi_head, one_dense_layer, sections, with_keys

_PLAIN = "qwen2moe qwen3moe arctic phimoe minimax-m2 hunyuan-moe hy_v3 grok".split()
_ONE_DENSE = "deepseek glm4moe bailingmoe bailingmoe2".split()


MIXTURE: dict[str, Family] = {
    **{name: Family(keys=experts) for name in _PLAIN},
    **{name: Family(keys=one_dense_layer, n_layer=3) for name in _ONE_DENSE},
    "glm4moe-draft": Family(
        arch="glm4moe",
        about="with a draft head",
        keys=with_keys(one_dense_layer, nextn_predict_layers=1),
        n_layer=4,
    ),
    "olmoe": Family(keys=with_keys(experts, multi_head)),
    "dots1": Family(keys=with_keys(one_dense_layer, multi_head), n_layer=3),
    "deepseek2-ocr": Family(keys=with_keys(one_dense_layer, multi_head), n_layer=3),
    "qwen3vlmoe": Family(keys=with_keys(experts, sections, n_deepstack_layers=0)),
    "dbrx": Family(keys=with_keys(experts, attention__clamp_kqv=8.0)),
    "granitemoe": Family(keys=with_keys(experts, logit_scale=1.0)),
    "ernie4_5-moe": Family(keys=with_keys(one_dense_layer, interleave_moe_layer_step=1), n_layer=3),
    "grovemoe": Family(
        keys=with_keys(
            experts, expert_group_scale=1.0, experts_per_group=1, expert_chunk_feed_forward_length=64
        )
    ),
}
