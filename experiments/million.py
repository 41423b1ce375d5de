"""What would a row of a million tokens take on 256 devices: softmax attention beside RWKV-7?

Both have 24 layers of width 2048, a vocabulary of 32,000 and a little more than a billion
parameters; softmax attention has 16 heads that share 8 heads of keys and values. Activations are
computed in bf16, and each block's are computed again in the backward pass. The mesh cuts one row of
1,048,576 tokens into 256 pieces.

    lcx plan experiments/million.py --devices 256

Cost: about 80 seconds of processor time a variant; nothing is trained, and no data is read.
`docs/planning.md` has the numbers and how to read them.

Expected, and found: both fit a v5p with room to spare, for the weights, which are copied along the
sequence, take more than the activations. Softmax attention does 39 times the operations of RWKV-7,
and sends 47 times the bytes; compute binds both. RWKV-7's activations are twice as large.
"""

from lcx import (
    LM,
    RWKV7,
    Block,
    Experiment,
    Experiments,
    LayerNorm,
    Mesh,
    Policy,
    RWKV7ChannelMix,
    SoftmaxAttention,
    Train,
)

TRAIN = Train(length=2**20, batch=1)
MESH = Mesh(seq=256)


def lm(block: Block, embed_norm: LayerNorm | None = None) -> LM:
    """About a billion parameters."""
    return LM(
        vocab=32_000,
        width=2048,
        pattern=(block,),
        repeats=24,
        norm=block.norm,
        embed_norm=embed_norm,
        policy=Policy(compute="bfloat16"),
        remat="block",
    )


def experiments() -> Experiments:
    """The variants, in the order in which the plan lists them."""
    norm = LayerNorm()
    models = {
        "softmax": lm(Block(SoftmaxAttention(heads=16, kv_heads=8))),
        "rwkv7": lm(Block(RWKV7(heads=32), RWKV7ChannelMix(), norm), norm),
    }
    return {name: Experiment(model, train=TRAIN, mesh=MESH) for name, model in models.items()}
