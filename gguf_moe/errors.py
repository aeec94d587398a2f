"""What can go wrong for a user. Each message is one sentence: what, where, the value, what to do."""

from __future__ import annotations


class GGUFMoeError(Exception):
    """The user's file, machine or options are at fault. The command line prints it and exits with 1."""


class GGUFError(GGUFMoeError):
    """The file is damaged, is not a GGUF file, or contradicts itself."""


class UnsupportedModelError(GGUFMoeError):
    """The file is sound, but it needs an architecture, tensor type or tokenizer that is not implemented."""


class TemplateError(GGUFMoeError):
    """The chat template is wrong, refused the messages, or used more than its budget."""


class OptionError(GGUFMoeError):
    """A value given by the caller is out of range or contradicts another."""


class ContextFullError(GGUFMoeError):
    """The tokens do not fit into the context."""


class OutOfMemoryError(GGUFMoeError):
    """The machine has too little memory; the message has the numbers."""


class BusyError(GGUFMoeError):
    """The model is already generating in another thread, or was closed, or was inherited through fork()."""


class QueueFullError(GGUFMoeError):
    """More generations wait than may."""


class NumericError(GGUFMoeError):
    """The model produced a value that is not a number."""

    def __init__(self) -> None:
        super().__init__(
            "the model's output is not a number; the file is damaged, or its weights overflow: "
            "check the file's checksum, or try another quantization."
        )


class ConstraintError(GGUFMoeError):
    """No token fits the schema or grammar, or following it takes too much work."""


class DeviceError(GGUFMoeError):
    """The GPU, its driver or CuPy is missing, failed, or does not answer."""


class HubError(GGUFMoeError):
    """A model of the hub is not in the cache, or it cannot be downloaded."""
