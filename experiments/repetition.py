"""How do models begin to repeat themselves as they write on, and what helps?

Two small models, softmax attention and RWKV-7, trained on 512 tokens at a time of Python's standard
library, write on from the beginnings of 32 unseen files, greedily and in eight other ways. Measured
by generated length, beside what the files' authors wrote there: repeated 4-grams, lines and
sentences, diversity, and how likely a third, wider model finds the text, the judge.

    lcx compare experiments/repetition.py

Cost: about 25 minutes on 2 cores, of which 5 are writing. The numbers are in `LOG.md`, of one
training each.

Expected, after Holtzman et al. 2020, Welleck et al. 2019 and Su et al. 2022, and measured:
- The likeliest text loops. Of 448 tokens, greedy repeats 90% (softmax) and 96% (RWKV-7) of its
  4-grams, their authors 16%; it does so from the first 64 tokens on (66% and 74%). Beam search,
  which finds likelier texts, repeats more: 95% and 97%. To the judge these are the best texts there
  are (perplexity 2), and those of people poor ones (17.6).
- Drawing from all there is hardly repeats (1% at most), and the judge finds it odd (81 and 59); the
  nucleus of 0.9 is between (44 and 29). Both repeat less than people do. A temperature of 0.7 is
  nearest to them with softmax (13%, perplexity 17.3), and repeats twice as much with RWKV-7.
- A penalty of 1.2 puts loops off more than it ends them: 28% at 64 tokens, 73% at 448. No 4-gram
  twice ends them by definition: the judge finds these texts likelier than people's (11), and those
  of softmax begin to be the same for different prompts (26% of their 4-grams).
- Contrastive search with softmax stays near people to 448 tokens (16%), at half of their
  perplexity; with RWKV-7 it repeats more and more (45%).
- A guard that resamples where greedy text begins to loop gives back as many repeats as people have
  (14% with either model), and a perplexity somewhat above theirs (25 and 23).
"""

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
    RMSNorm,
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
    block = Block(SoftmaxAttention(heads, qk_norm=RMSNorm()), SwiGLU(width * 8 // 3 // 8 * 8))
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
