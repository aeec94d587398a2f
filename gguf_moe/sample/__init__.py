"""From logits to the next token: llama.cpp's usual chain of samplers, in its order and with its defaults."""

from gguf_moe.sample.dry import Breakers, find_breakers
from gguf_moe.sample.sampler import Sampler
from gguf_moe.sample.sampling import SAMPLERS, Sampling

__all__ = ["SAMPLERS", "Breakers", "Sampler", "Sampling", "find_breakers"]
