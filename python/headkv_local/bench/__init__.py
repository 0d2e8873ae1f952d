"""What `headkv bench` measures: speed and memory, and right answers."""
