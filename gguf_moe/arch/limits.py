"""The largest numbers that a file may have: beyond them it is damaged."""

MAX_LAYERS, MAX_EXPERTS = 512, 1024
"""llama.cpp's limits (LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS)."""
MAX_CONTEXT = 1 << 30
MAX_WIDTH = 1 << 24
