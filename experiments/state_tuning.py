r"""A learned state, a learned prefix, or low-rank updates: what do few parameters teach a model?

Three bases read the Python standard library: softmax attention, Mamba-2 and RWKV-7. Each is then
tuned in 300 steps on conversations about that library (`docstrings.py`), another kind of text in
another form, on their answers. By a learned initial state (`InitialState`) or, in softmax
attention, learned keys and values (`PrefixTuning`); by low-rank updates of the mixers (`LoRA`), of
about as many parameters; by sixteen learned embeddings (`PromptTuning`); and with all parameters
trained (`all`). Unseen conversations are read from their beginnings, where what was learned stands.
The bases have read most modules, their docstrings among them.

    lcx compare experiments/state_tuning.py --seeds 3 --only softmax,softmax_prefix,softmax_lora,\
softmax_prompt,softmax_all,mamba2,mamba2_state,mamba2_lora,mamba2_prompt,mamba2_all,\
rwkv7,rwkv7_state,rwkv7_lora,rwkv7_prompt,rwkv7_all

Cost: about 40 minutes on 2 cores; of one seed, a third. The numbers are in `LOG.md`.

Found, of three seeds, and so at each place in the conversations, in each of the three models:
- Low-rank updates teach more than a state or a prefix of as many parameters, whose perplexity is 12
  to 35% higher; all parameters more than either (theirs is 21 to 31% below that of `lora`).
- A state does most of it all the same: of RWKV-7's 54.7 at 64 to 127 tokens it leaves 29.9, and
  low-rank updates 25.5. Sixteen embeddings, a sixth of the numbers, are worth about as much as
  the prefix in softmax attention, and less than the state in recurrences.
- What a state has taught does not fade within 192 tokens: beside `lora` it stays where it was in
  RWKV-7 (1.18, 1.17, 1.18), and comes closer in Mamba-2 (1.35, 1.19, 1.12). Users of RWKV report
  that it does fade; longer texts would say.
- It wants a learning rate of 1, far above the others'.
"""

from dataclasses import replace

from chat import HELD_OUT, OPTIMIZER, TOKENIZER, written
from docstrings import write_talk

from lcx import (
    LM,
    RWKV7,
    AdamW,
    Block,
    ByPosition,
    ChatML,
    Conversations,
    Data,
    Experiment,
    Experiments,
    InitialState,
    LayerNorm,
    LoRA,
    Mamba2,
    PrefixTuning,
    PromptTuning,
    PythonCorpus,
    RMSNorm,
    RWKV7ChannelMix,
    SoftmaxAttention,
    Train,
)

MODELS = {
    "softmax": LM(1024, 128, (Block(SoftmaxAttention(heads=4, qk_norm=RMSNorm())),), 3),
    "mamba2": LM(1024, 128, (Block(Mamba2(head_width=32, state=16)),), 3),
    "rwkv7": LM(
        *(1024, 128, (Block(RWKV7(), RWKV7ChannelMix(), LayerNorm()),), 3),
        norm=LayerNorm(),
        embed_norm=LayerNorm(),
    ),
}
TOKENS = 16
"""Virtual tokens: whose keys and values are as many numbers as the recurrences' states."""
METHODS = {
    "softmax": {"prefix": PrefixTuning(TOKENS), "lora": LoRA(4, of=("q", "k", "v", "out"))},
    "mamba2": {"state": InitialState(), "lora": LoRA(4, of=("mixer.x", "mixer.gate", "mixer.out"))},
    "rwkv7": {
        "state": InitialState(),
        "lora": LoRA(4, of=tuple(f"mixer.{p}" for p in ("receptance", "key", "value", "out"))),
    },
}
RATES = {"prefix": 0.03, "state": 1.0, "lora": 3e-3, "prompt": 0.03, "all": 1e-3}
"""The best, or nearly, of two to five that were tried on one seed of softmax and RWKV-7."""


def experiments() -> Experiments:
    """Three bases, and what is made of each."""
    talk = Data(Conversations(written("talk", write_talk), ChatML()), TOKENIZER, **HELD_OUT)
    read = Train(length=256, batch=4, steps=1000, optimizer=OPTIMIZER)
    found: dict[str, Experiment] = {}
    for name, model in MODELS.items():
        base = Experiment(model, Data(PythonCorpus(), TOKENIZER), read, ByPosition((64, 128, 192)))
        found[f"{name}_base"] = base
        found[name] = replace(
            base, data=talk, train=replace(read, steps=0), init_from=f"{name}_base"
        )
        ways = METHODS[name] | {"prompt": PromptTuning(TOKENS), "all": None}
        for way, tune in ways.items():
            tuning = replace(read, steps=300, optimizer=AdamW(RATES[way], warmup=20))
            found[f"{name}_{way}"] = replace(found[name], train=tuning, tune=tune)
    return found
