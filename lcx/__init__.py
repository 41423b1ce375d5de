"""lcx: what a language model gains, and pays, as its context grows."""

__version__ = "0.1.0"
