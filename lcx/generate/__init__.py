"""Text out of a model: many prompts side by side, stop strings, and a guard against loops."""

from lcx.generate.generator import STEPS, Generator
from lcx.generate.written import Written

__all__ = ["STEPS", "Generator", "Written"]
