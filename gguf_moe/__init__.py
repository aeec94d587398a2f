"""gguf-moe: run quantized GGUF mixture-of-experts models."""

__version__ = "0.1.0"
