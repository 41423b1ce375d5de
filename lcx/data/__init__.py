"""Text for training and evaluation: where it comes from, how it is tokenized and packed."""

from lcx.data.corpus import Corpus, Data
from lcx.data.documents import SPLITS, Document, Documents
from lcx.data.sources import SOURCES, TFDS, PythonCorpus, Source, TextFiles
from lcx.data.tokenizers import (
    BPE,
    TOKENIZERS,
    Bytes,
    Tokenizer,
    TokenizerFile,
    TokenizerSpec,
)

__all__ = [
    "BPE",
    "SOURCES",
    "SPLITS",
    "TFDS",
    "TOKENIZERS",
    "Bytes",
    "Corpus",
    "Data",
    "Document",
    "Documents",
    "PythonCorpus",
    "Source",
    "TextFiles",
    "Tokenizer",
    "TokenizerFile",
    "TokenizerSpec",
]
