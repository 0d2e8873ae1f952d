"""GGUF metadata: read from models, written as sidecars and into copies of models."""
