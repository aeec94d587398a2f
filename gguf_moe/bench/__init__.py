"""How fast a file runs here, measured in llama-bench's way, beside how fast this machine reads memory.

  pp N    a prompt of N tokens
  tg N    N tokens generated one after the other

Both may begin after `n_depth` tokens of context. No text takes part: tokens are random, and the tokenizer is
not read. Random tokens may go to other experts than text does; a routing trace, if given, decides instead.
"""

from gguf_moe.bench.bench import Bench, Progress
from gguf_moe.bench.rows import BenchTest, Row

__all__ = ["Bench", "BenchTest", "Progress", "Row"]
