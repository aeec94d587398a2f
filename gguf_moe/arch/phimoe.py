"""phimoe: Phi-3.5-MoE. Biases everywhere, also on the norms and the output.

Its router (sparsemixer) is taken as a softmax over the two best experts, and its norms as RMS norms with a
bias, both as in llama.cpp.
"""

from gguf_moe.arch.base import ATTENTION, FFN_NORM, OUTER, ROPE_FACTORS, Arch, RopeStyle, required

ARCH = Arch(
    name="phimoe",
    rope=RopeStyle.NEOX,
    tensors={
        **OUTER,
        "output_norm.bias": required("n_embd"),
        "output.weight": required("n_embd", "n_vocab"),
        "output.bias": required("n_vocab"),
        **ROPE_FACTORS,
    },
    block_tensors={
        **ATTENTION,
        "attn_norm.bias": required("n_embd"),
        "attn_output.bias": required("n_embd"),
        **FFN_NORM,
        "ffn_norm.bias": required("n_embd"),
    },
)
