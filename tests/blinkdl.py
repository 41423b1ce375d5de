"""Small state dicts of RWKV-4 to 7 under BlinkDL's names, as his modules make and keep them."""

import numpy as np

VERSIONS = (4, 5, 6, 7)
VOCAB, WIDTH, HEADS, HIDDEN, LAYERS = 260, 48, 3, 80, 3
RANKS = {"w": 6, "a": 7, "v": 5, "g": 9}
"""Of RWKV-7's low-rank maps."""
MIX_RANK, DECAY_RANK = 4, 10

Tensors = dict[str, np.ndarray]


def shapes(version: int, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Of every tensor, by name."""
    D, H, vector = WIDTH, HEADS, (1, 1, WIDTH)
    found = {"emb.weight": (VOCAB, D), "head.weight": (VOCAB, D)}
    norms = ["blocks.0.ln0", "ln_out"]
    for layer in range(layers):
        block, att, ffn = (f"blocks.{layer}{part}" for part in ("", ".att", ".ffn"))
        norms += [f"{block}.ln1", f"{block}.ln2"]
        found |= {f"{att}.{n}.weight": (D, D) for n in ("receptance", "key", "value", "output")}
        found |= {f"{ffn}.key.weight": (HIDDEN, D), f"{ffn}.value.weight": (D, HIDDEN)}
        if version < 7:
            found |= {f"{ffn}.receptance.weight": (D, D)}
        if version > 4:
            norms.append(f"{att}.ln_x")
        if version in (5, 6):
            found |= {f"{att}.gate.weight": (D, D), f"{att}.time_faaaa": (H, D // H)}
        if version == 4:
            found |= {f"{att}.time_decay": (D,), f"{att}.time_first": (D,)}
            found |= {f"{att}.time_mix_{n}": vector for n in "kvr"}
            found |= {f"{ffn}.time_mix_{n}": vector for n in "kr"}
        elif version == 5:
            found |= {f"{att}.time_decay": (H, D // H)}
            found |= {f"{att}.time_mix_{n}": vector for n in "kvrg"}
            found |= {f"{ffn}.time_mix_{n}": vector for n in "kr"}
        elif version == 6:
            found |= {f"{att}.time_decay": vector}
            found |= {f"{att}.time_maa_{n}": vector for n in "xwkvrg"}
            found |= {
                f"{att}.time_maa_w1": (D, 5 * MIX_RANK),
                f"{att}.time_maa_w2": (5, MIX_RANK, D),
            }
            found |= {f"{att}.time_decay_w1": (D, DECAY_RANK)}
            found |= {f"{att}.time_decay_w2": (DECAY_RANK, D)}
            found |= {f"{ffn}.time_maa_{n}": vector for n in "kr"}
        else:
            found |= {f"{att}.x_{n}": vector for n in "rwkvag"} | {f"{ffn}.x_k": vector}
            found |= {f"{att}.{n}": vector for n in ("w0", "a0", "v0", "k_k", "k_a")}
            found |= {f"{att}.{n}1": (D, rank) for n, rank in RANKS.items()}
            found |= {f"{att}.{n}2": (rank, D) for n, rank in RANKS.items()}
            found |= {f"{att}.r_k": (H, D // H)}
    return found | {f"{n}.{part}": (D,) for n in norms for part in ("weight", "bias")}


def state_dict(version: int, layers: int = LAYERS, seed: int = 0) -> Tensors:
    """All of them random, none near a value at which it would do nothing; fp32."""
    rng = np.random.default_rng(seed)

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        part = name.rpartition(".")[2]
        if part.startswith(("time_mix", "x_")) or (part.startswith("time_maa") and len(shape) == 3):
            a = rng.uniform(0, 1, shape) if shape[0] == 1 else rng.normal(0, 0.5, shape)
        elif part == "time_decay":  # to 1/e in anything from 100 tokens to half a token
            a = rng.uniform(-4.6, 0.7, shape)
        elif part in ("k_k", "k_a"):
            a = rng.uniform(0.5, 1.5, shape)
        elif part == "w0":
            a = rng.uniform(-6, 1, shape)
        elif len(shape) == 2 and part != "time_faaaa":
            fan_in = shape[1] if part == "weight" else shape[0]
            a = rng.normal(0, fan_in**-0.5, shape)
        elif part == "weight":  # of a norm
            a = rng.uniform(0.5, 1.5, shape)
        else:
            a = rng.normal(0, 0.5, shape)
        return a.astype(np.float32)

    return {name: drawn(name, shape) for name, shape in shapes(version, layers).items()}
