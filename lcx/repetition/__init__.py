"""How texts repeat themselves and each other: measures, a detector of loops, filters.

Over token ids, or over words; nothing here knows a model.
"""
