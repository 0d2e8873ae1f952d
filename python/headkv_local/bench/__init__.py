"""What `headkv bench` measures: speed and memory, and needles found."""
