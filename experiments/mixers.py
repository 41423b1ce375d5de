"""Token mixers at the same number of parameters: who reads on, and beyond the training length?

Models of 0.73 million parameters, three layers, trained on 128 tokens at a time of Python's
standard library and asked for the same spans of unseen files from 16 to 1,024 tokens of context.
The channel mix is as wide as makes the parameters equal.

    lcx compare experiments/mixers.py

Cost: about 55 minutes on 2 cores, 1.6 million tokens a model. The numbers are in `LOG.md`, of one
training each: what is said below is of these weights.

Found, with what reading 128 tokens in place of 16 gains:
- Softmax attention gains most, 42%, and breaks beyond its training: at 256 nothing is left, at 512
  and 1,024 it is worse than at 16. Chosen blocks gain 36% and break more slowly (a third worse than
  at 16 after 1,024 tokens); strides gain 22%, of which nothing is left there. A window of 32 gains
  28% and holds it to the end, as do two recurrent layers under a window (Griffin: 24%).
- RWKV-7 gains 35% and reads on: 39% at 512, four times its training. From 256 tokens on its
  perplexity is the lowest.
- Two Mamba-2 layers under one softmax layer (Jamba) gain 39%, as much at twice the training, and
  25% at eight times: a little attention carries most of what attention is good for.
- The other recurrences that forget (Mamba-2, RG-LRU, GLA, RetNet, Gated DeltaNet, RWKV-4 and 6)
  gain 10 to 23%, nearly all of it by 64 tokens, and hold. DeltaNet, which forgets nothing, gains
  16% and drifts up again slowly; linear attention, which adds up all it sees, gains 20% to 64
  tokens, and has lost that at 512.
- LongLoRA's groups, read with the whole past as they are, gain to 64 tokens, which is a group, and
  break beyond: without the fine-tune of the paper the promise is not kept.
Multi-query attention gains 21%, half of what multi-head does, with one seed: whether that is its
single KV head or the chance of when a model learns to copy (see `quickstart.py`), seeds would say.
"""

from dataclasses import replace

from lcx import (
    BPE,
    GLA,
    LM,
    RGLRU,
    RWKV4,
    RWKV6,
    RWKV7,
    Block,
    Data,
    DeltaNet,
    Experiment,
    Experiments,
    GatedDeltaNet,
    LayerNorm,
    LinearAttention,
    Mamba2,
    Muon,
    RetNet,
    RMSNorm,
    RWKV7ChannelMix,
    RWKVChannelMix,
    SameTargets,
    ShiftedGroups,
    SoftmaxAttention,
    Strided,
    SwiGLU,
    TopBlocks,
    Train,
    Window,
)
from lcx.model import count_parameters
from lcx.types import Sublayer

PARAMETERS = 734_272
DATA = Data(tokenizer=BPE(1024))
OPTIMIZER = Muon(peak=1e-2, schedule="wsd", final=0.0)
TRAIN = Train(length=128, batch=8, steps=1600, optimizer=OPTIMIZER)
EVALUATION = SameTargets(contexts=(16, 32, 64, 128, 256, 512, 1024), documents=16)


def attention(**settings) -> SoftmaxAttention:
    """Queries and keys are normalised, which Muon's large steps need."""
    return SoftmaxAttention(qk_norm=RMSNorm(), **settings)


LOCAL = attention(sparsity=Window(32))


def swiglu(*mixers: Sublayer) -> LM:
    """Three layers of width 128, the mixers in turn."""
    hidden = matched(lambda n: lm(mixers, SwiGLU(n)))
    return lm(mixers, SwiGLU(hidden))


def rwkv(mixer: Sublayer, channel: type) -> LM:
    """As the RWKV family has it: layer norms, one more on the embedding, its own channel mix."""

    def model(hidden: int) -> LM:
        norm = LayerNorm()
        block = Block(mixer, channel=channel(hidden), norm=norm)
        return LM(vocab=1024, width=128, pattern=(block,), repeats=3, norm=norm, embed_norm=norm)

    return model(matched(model))


def lm(mixers: tuple[Sublayer, ...], channel: Sublayer) -> LM:
    """Three layers of width 128."""
    pattern = tuple(Block(mixer, channel) for mixer in mixers)
    return LM(vocab=1024, width=128, pattern=pattern, repeats=3 // len(mixers))


def matched(model) -> int:
    """The width of the channel mix, a multiple of 8, that comes nearest to PARAMETERS."""
    one, two = count_parameters(model(8)), count_parameters(model(16))
    return 8 + 8 * round((PARAMETERS - one) / (two - one))


def experiments() -> Experiments:
    """The variants, in the order in which the report lists them."""
    models = {
        "softmax": swiglu(attention()),
        "multi_query": swiglu(attention(kv_heads=1)),
        "window": swiglu(LOCAL),
        "strided": swiglu(attention(sparsity=Strided(16))),
        "shifted_groups": swiglu(attention(sparsity=ShiftedGroups(64))),
        "top_blocks": swiglu(attention(sparsity=TopBlocks(16, top=2))),
        "linear": swiglu(LinearAttention()),
        "retnet": swiglu(RetNet(expand=1)),
        "gla": swiglu(GLA()),
        "mamba2": swiglu(Mamba2(state=32, head_width=32)),
        "delta_net": swiglu(DeltaNet()),
        "gated_delta_net": swiglu(GatedDeltaNet(expand=1)),
        "rg_lru": swiglu(RGLRU()),
        "rwkv4": rwkv(RWKV4(), RWKVChannelMix),
        "rwkv6": rwkv(RWKV6(mix_rank=16, decay_rank=16), RWKVChannelMix),
        "rwkv7": rwkv(RWKV7(), RWKV7ChannelMix),
        "griffin": swiglu(RGLRU(), RGLRU(), LOCAL),
        "jamba": swiglu(*[Mamba2(state=32, head_width=32)] * 2, attention()),
    }
    variants = {n: Experiment(m, DATA, TRAIN, EVALUATION) for n, m in models.items()}
    # LongLoRA: trained on groups, read with the whole past
    dense = replace(variants["softmax"], train=replace(TRAIN, steps=0), init_from="shifted_groups")
    return variants | {"shifted_then_dense": dense}
