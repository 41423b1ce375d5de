"""How do models begin to repeat themselves as they write on, and what helps?"""

from dataclasses import replace

from lcx import (
    BPE,
    LM,
    RWKV7,
    BeamSearch,
    Block,
    ContrastiveSearch,
    Data,
    Experiment,
    Experiments,
    Greedy,
    LayerNorm,
    Muon,
    NoRepeatNGram,
    Repetition,
    RepetitionGuard,
    RepetitionPenalty,
    Resample,
    RWKV7ChannelMix,
    SoftmaxAttention,
    SwiGLU,
    Temperature,
    TopP,
    Train,
)

DATA = Data(tokenizer=BPE(1024))
TRAIN = Train(length=512, batch=2, steps=1600, optimizer=Muon(peak=1e-2, schedule="wsd", final=0.0))
EVALUATION = Repetition(prompt=64, lengths=(64, 128, 256, 448), judge="judge", documents=32)
WAYS = {
    "beams": replace(EVALUATION, decoding=BeamSearch(4)),
    "contrastive": replace(EVALUATION, decoding=ContrastiveSearch(4, alpha=0.6)),
    "penalty": replace(EVALUATION, decoding=Greedy((RepetitionPenalty(1.2),))),
    "no_4_gram": replace(EVALUATION, decoding=Greedy((NoRepeatNGram(4),))),
    "guard": replace(
        EVALUATION, guard=RepetitionGuard(n=4, window=64, act=Resample(Temperature(1.0), 32))
    ),
    "nucleus": replace(EVALUATION, decoding=TopP(0.9)),
    "cooler": replace(EVALUATION, decoding=Temperature(0.7)),
    "sampled": replace(EVALUATION, decoding=Temperature(1.0)),
}


def softmax(width: int, heads: int) -> LM:
    """Three layers."""
    block = Block(SoftmaxAttention(heads, qk_norm=True), SwiGLU(width * 8 // 3 // 8 * 8))
    return LM(vocab=1024, width=width, pattern=(block,), repeats=3)


def rwkv7() -> LM:
    """As wide, with as many parameters, as RWKV-7 has it."""
    norm = LayerNorm()
    block = Block(RWKV7(), RWKV7ChannelMix(344), norm)
    return LM(vocab=1024, width=128, pattern=(block,), repeats=3, norm=norm, embed_norm=norm)


def experiments() -> Experiments:
    """Each model by itself is greedy; what it writes otherwise bears its name and the way's."""
    models = {"softmax": softmax(128, 4), "rwkv7": rwkv7()}
    found = {name: Experiment(model, DATA, TRAIN, EVALUATION) for name, model in models.items()}
    as_it_is = replace(TRAIN, steps=0)
    for name in models:
        for way, evaluation in WAYS.items():
            found[f"{name}_{way}"] = replace(
                found[name], init_from=name, train=as_it_is, evaluation=evaluation
            )
    judge = Experiment(softmax(192, 6), DATA, replace(TRAIN, seed=1), EVALUATION)
    return found | {"judge": judge}
