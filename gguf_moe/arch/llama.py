"""llama: Llama and Mistral models, and Mixtral as their mixture of experts."""

from gguf_moe.arch.base import Arch, RopeStyle, optional, required

ARCH = Arch(
    name="llama",
    rope=RopeStyle.NORM,
    tensors={
        "token_embd.weight": required("n_embd", "n_vocab"),
        "output_norm.weight": required("n_embd"),
        "output.weight": optional("n_embd", "n_vocab"),
        "rope_freqs.weight": optional("n_rot_pairs"),
        "rope_factors_long.weight": optional("n_rot_pairs"),
        "rope_factors_short.weight": optional("n_rot_pairs"),
    },
    block_tensors={
        "attn_norm.weight": required("n_embd"),
        "attn_q.weight": required("n_embd", "n_embd_q"),
        "attn_q.bias": optional("n_embd_q"),
        "attn_k.weight": required("n_embd", "n_embd_k_gqa"),
        "attn_k.bias": optional("n_embd_k_gqa"),
        "attn_v.weight": required("n_embd", "n_embd_v_gqa"),
        "attn_v.bias": optional("n_embd_v_gqa"),
        "attn_output.weight": required("n_embd_out", "n_embd"),
        "attn_output.bias": optional("n_embd"),
        "ffn_norm.weight": required("n_embd"),
    },
    dense_tensors={
        "ffn_gate.weight": required("n_embd", "n_ff"),
        "ffn_gate.bias": optional("n_ff"),
        "ffn_up.weight": required("n_embd", "n_ff"),
        "ffn_up.bias": optional("n_ff"),
        "ffn_down.weight": required("n_ff", "n_embd"),
        "ffn_down.bias": optional("n_embd"),
    },
)
