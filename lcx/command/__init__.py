"""The `lcx` command."""
