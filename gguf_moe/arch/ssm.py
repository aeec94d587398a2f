"""The sizes of recurrent layers (gated delta nets), and which layers are recurrent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gguf_moe.checkpoint.metadata import Metadata

MAX_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class Ssm:
    """llama.cpp's ssm_* numbers; all are 0 in a model without recurrent layers.

    A layer has dt_rank heads of values, and n_group heads of queries and of keys, which several heads of
    values share. All heads have d_state elements.
    """

    d_conv: int = 0
    """The convolution sees so many tokens, the newest among them."""
    d_inner: int = 0
    """Width of all value heads."""
    d_state: int = 0
    dt_rank: int = 0
    n_group: int = 0

    @property
    def n_key(self) -> int:
        """Width of all key heads."""
        return self.n_group * self.d_state

    @property
    def n_qkv(self) -> int:
        """Width of what is convolved: queries, keys and values."""
        return 2 * self.n_key + self.d_inner

    @property
    def n_qkvz(self) -> int:
        """The same with the gate of the output, which is as wide as the values."""
        return self.n_qkv + self.d_inner

    @property
    def n_ba(self) -> int:
        """Width of both gates of the recurrence."""
        return 2 * self.dt_rank

    @property
    def n_state(self) -> int:
        """Elements of the states of one layer, that of the convolution among them."""
        return (self.d_conv - 1) * self.n_qkv + self.d_inner * self.d_state if self.d_conv else 0


def read_ssm(keys: Metadata) -> Ssm:
    """Read and check the sizes. Raises GGUFError."""
    d_state = keys.integer("ssm.state_size", minimum=1, maximum=MAX_SIZE)
    n_group = keys.integer("ssm.group_count", minimum=1, maximum=MAX_SIZE)
    dt_rank = keys.integer("ssm.time_step_rank", minimum=1, maximum=MAX_SIZE)
    if dt_rank % n_group:
        raise keys.wrong("ssm.time_step_rank", f"a multiple of the {n_group} groups")
    d_inner = keys.integer("ssm.inner_size")
    if d_inner != dt_rank * d_state:
        raise keys.wrong("ssm.inner_size", f"{dt_rank * d_state}, the width of {dt_rank} heads of {d_state}")
    d_conv = keys.integer("ssm.conv_kernel", minimum=2, maximum=MAX_SIZE)
    return Ssm(d_conv, d_inner, d_state, dt_rank, n_group)


def recurrent_layers(keys: Metadata, n_layer: int, n_layer_all: int) -> tuple[bool, ...]:
    """Whether each layer is recurrent: by an array, or all but every n-th. At least one has attention."""
    key = "attention.recurrent_layers"
    if key in keys and isinstance(keys[key], np.ndarray):
        layers = keys.per_layer(key, n_layer_all, minimum=0, maximum=1)[:n_layer]
        if all(layers):
            raise keys.wrong(key, "an array in which one layer at least is not recurrent")
        return tuple(bool(layer) for layer in layers)
    n = keys.integer("full_attention_interval", 4, minimum=1, maximum=n_layer)
    return tuple((il + 1) % n != 0 for il in range(n_layer))
