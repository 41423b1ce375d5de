"""Phi-3 and Phi-4: a Llama whose projections are two tensors."""

from typing import Any

from lcx.block import Block
from lcx.huggingface import llama
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.layers import RMSNorm, SwiGLU
from lcx.model import LM
from lcx.sparsity import Window


class Phi3(llama.Llama):
    """Queries, keys and values in one tensor, the gate and what it gates in another."""

    kinds = ("phi3",)

    def read(self, config: Config) -> LM:
        # what the first models' configs say besides
        config.only(attention_bias=False, mlp_bias=False, lm_head_bias=False)
        config.only(hidden_act="silu", interpolate_factor=1, full_attn_mod=1)
        norm = RMSNorm(config.number("rms_norm_eps", 1e-5))
        block = Block(llama.attention(config), SwiGLU(config.count("intermediate_size")), norm)
        known = [*llama.windowed(block, llama.window(config)).values()][-1]
        return llama.around(config, (known,), config.count("num_hidden_layers"))

    def write(self, model: LM) -> dict[str, Any] | None:
        if (parts := llama.sublayers(model)) is None:
            return None
        mixer, channel = parts
        sizes = [s.size for s in llama.sparsities(model) if isinstance(s, Window)]
        own = {"sliding_window": next(iter(sizes), None)}
        return llama.written("phi3", model, mixer, channel.width(model.width), own)

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        layer = "model.layers.{}"
        return (
            *rules(llama.NORMS),
            *rules({"mixer.out.kernel": f"{layer}.self_attn.o_proj.weight"}),
            *rules({"channel.down.kernel": f"{layer}.mlp.down_proj.weight"}),
            Rule(f"{layer}.self_attn.qkv_proj.weight", tuple(f"mixer.{n}.kernel" for n in "qkv")),
            Rule(f"{layer}.mlp.gate_up_proj.weight", ("channel.gate.kernel", "channel.up.kernel")),
        )
