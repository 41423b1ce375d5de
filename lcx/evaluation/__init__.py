"""Scores of trained models, and how sure we are of them."""
