"""A GGUF file, or its parts -> typed metadata and tensors that are views into the file."""

from gguf_moe.checkpoint.experts import ExpertTensors, expert_tensors
from gguf_moe.checkpoint.file import Checkpoint, Tensor, open_checkpoint
from gguf_moe.checkpoint.metadata import Metadata

__all__ = ["Checkpoint", "ExpertTensors", "Metadata", "Tensor", "expert_tensors", "open_checkpoint"]
