"""What the backward pass computes again, and does not keep from the forward pass."""

from functools import partial

import jax

recomputed = partial(jax.checkpoint, prevent_cse=False)
"""`recomputed(f)` is f, of which only the arguments are kept for the backward pass.

For chains of elementwise functions, such as a norm or a gate: they are cheap to make again, and
what they make on their way, much of it in fp32, would be most of a training step's memory. Where
layers are written out and not looped over, the compiler may keep it all the same.
"""
