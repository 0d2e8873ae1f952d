"""Public suites of `headkv bench quality --suite`: their files, their prompts, their metrics."""
