"""Rows per KV head as real head scores divide them, for bench-headkv-attn: `--caps 600,300,10/3 ...`

Of each file of shipped scores the layer whose heads differ most, for 32,768 tokens at a budget of 512.
"""

from headkv_local import HeadScores, Retention
from headkv_local.budgets import ModelShape
from headkv_local.scores import SHIPPED

for path in sorted(SHIPPED.glob("*.gguf")):
    scores = HeadScores.from_gguf(path)
    n_layer, n_head = scores.scores.shape
    shape = ModelShape(n_layer, n_head, scores.n_head_kv, row_bytes=1)
    caps = Retention(budget=512).with_scores(scores).caps_for(shape, 32768)
    uneven = caps[(caps.max(axis=1) / caps.mean(axis=1)).argmax()]
    print("--caps", ",".join(map(str, uneven)) + f"/{n_head // scores.n_head_kv}", end=" ")
