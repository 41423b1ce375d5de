"""Chips by name, and what their makers say that they do."""

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Chip:
    """Published rates of one chip; bytes are powers of ten, as in the sources."""

    flops: float
    """Dense bf16 FLOP/s."""
    memory: float
    """Bytes of HBM."""
    bandwidth: float
    """Bytes/s from and to HBM."""
    link: float
    """Bytes/s out of the chip, over all of its fast links at once: half of what is published as
    "bidirectional"."""
    reach: int
    """How many chips these links join."""
    network: float | None
    """Bytes/s out of the chip to those further away; None: not published."""

    def wire(self, devices: int) -> float:
        """Bytes/s out of each of so many chips, by the slowest link that they need.

        Raises ValueError where that link's rate is not known.
        """
        if devices <= self.reach:
            return self.link
        if self.network is None:
            raise ValueError(f"{devices} devices: this chip's fast links join {self.reach} at most")
        return self.network


# Google's pages at docs.cloud.google.com/tpu/docs: v5e, v5p, v6e, tpu7x. ICI: v5e 400, v6e 800,
# v5p and TPU7x 1200 GB/s bidirectional a chip. Network: a pod's published data centre bandwidth by
# its chips (v5e 6.4, v6e 25.6 Tb/s over 256); v5p from "How to Scale Your Model", part 2 (2025).
# NVIDIA's data sheets: H100 SXM, H200 SXM, DGX B200, whose tensor rates are with sparsity: halved.
# NVLink: 900 GB/s (B200: 1800) both ways together, among the 8 GPUs of a host; one 400 Gb/s
# network port a GPU, as DGX H100, H200 and B200 have.
CHIPS = {
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, 256, 3.125e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, 8960, 6.25e9),
    "v6e": Chip(918e12, 32e9, 1638e9, 400e9, 256, 12.5e9),
    "v7": Chip(2307e12, 192e9, 7380e9, 600e9, 9216, None),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9, 8, 50e9),
    "H200": Chip(989e12, 141e9, 4800e9, 450e9, 8, 50e9),
    "B200": Chip(2250e12, 180e9, 8000e9, 900e9, 8, 50e9),
}


def chip_named(name: str) -> Chip:
    """The chip, whatever the case of its name. Raises ValueError, with the nearest, for others."""
    by_lower = {known.lower(): chip for known, chip in CHIPS.items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    near = get_close_matches(name.lower(), by_lower, 1, cutoff=0.4)
    hint = f"; did you mean {next(k for k in CHIPS if k.lower() == near[0])!r}?" if near else "."
    raise ValueError(f"--chip: no chip {name!r}{hint} There are: {', '.join(CHIPS)}")
