"""The training loop, and what a run keeps: steps, checkpoints, a folder."""
