r"""What do losses against repetition mend in a small model that loops, and at what price?

Table 2 of Welleck et al. 2019, in small. A base reads the Python standard library; all others go on
from it for 300 steps on the same rows: by plain cross-entropy (`longer`, the control), with
unlikelihood of earlier tokens (`token`), of what the model repeats in text of its own (`sequence`),
of both, and with SimCTG's contrastive loss. Each writes greedily from the beginnings of 64 unseen
files; `longer` and `contrastive` by contrastive search, too. DPO is not here: its pairs are other
data (`chat.py`).

    lcx compare experiments/manners.py --seeds 3
    lcx report runs/manners --baseline longer

Perplexity and accuracy of the next token are on a second page:

    lcx evaluate experiments/manners.py --seeds 3 \
        --only base,longer,token,sequence,both,contrastive \
        --set 'evaluation=SameTargets(contexts=(64, 256), documents=100)'

Cost: of one seed, about 9 minutes of processor time, and 1 for the second page; of three, thrice
that. The numbers are in `LOG.md`.

Expected, after the paper, where seq-rep-4 falls from 0.44 to 0.28 with `token` and to 0.14 with
`sequence`, and perplexity rises by 5% with the first; and measured, of three seeds:
- The base loops: of 200 tokens 88% of the 4-grams are repeats, of the control's 84%, of people's
  12%. `token` mends 0.07 of it (0.04 to 0.11) for 3% of perplexity, `sequence` 0.23 (0.06 to 0.39)
  for 5%. Both go the way of the paper, less far: 300 steps are few, and four texts are written in
  every other one.
- SimCTG's loss changes nothing that shows. There is little for it to do: in the base, 6% of the
  pairs of states of a text have a cosine above 0.5. Contrastive search does without it, too.
"""

from dataclasses import replace

from lcx import (
    BPE,
    LM,
    Block,
    Contrastive,
    ContrastiveSearch,
    Data,
    Experiment,
    Experiments,
    Muon,
    Repetition,
    RMSNorm,
    SequenceUnlikelihood,
    SoftmaxAttention,
    Train,
    Unlikelihood,
)

MODEL = LM(
    vocab=1024,
    width=128,
    pattern=(Block(SoftmaxAttention(heads=4, qk_norm=RMSNorm())),),
    repeats=3,
    tied=True,
)
OPTIMIZER = Muon(peak=1e-2, schedule="wsd", final=0.0)
LOSSES = {
    "token": Unlikelihood(),
    "sequence": SequenceUnlikelihood(),
    "both": SequenceUnlikelihood(beside=Unlikelihood()),
    "contrastive": Contrastive(),
}


def experiments() -> Experiments:
    """The base, what each loss makes of it, and contrastive search in two of these."""
    greedy = Repetition(prompt=50, lengths=(25, 50, 100, 200), documents=64)
    train = Train(length=256, batch=4, steps=1200, optimizer=OPTIMIZER)
    base = Experiment(MODEL, Data(tokenizer=BPE(1024)), train, greedy)
    further = replace(train, steps=300, optimizer=replace(OPTIMIZER, peak=3e-3))
    longer = replace(base, init_from="base", train=further)
    losses = {name: replace(longer, train=replace(further, loss=x)) for name, x in LOSSES.items()}
    search = replace(greedy, decoding=ContrastiveSearch(4, alpha=0.6))
    searched = {
        f"{name}_searched": replace(
            longer, init_from=name, train=replace(further, steps=0), evaluation=search
        )
        for name in ("longer", "contrastive")
    }
    return {"base": base, "longer": longer, **losses, **searched}
