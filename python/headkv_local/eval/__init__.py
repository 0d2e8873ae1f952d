"""lm-evaluation-harness with `--model headkv`: `headkv eval`, which is `lm_eval` with our model and tasks."""
