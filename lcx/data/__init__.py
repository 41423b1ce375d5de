"""Text for training and evaluation: where it comes from, how it is tokenized and packed."""

from lcx.data.conversations import Conversations
from lcx.data.corpus import Corpus, Data
from lcx.data.documents import SPLITS, Document, Documents
from lcx.data.jinja import Jinja
from lcx.data.pairs import Pairs
from lcx.data.recall import MQAR
from lcx.data.sources import TFDS, PythonCorpus, Source, TextFiles
from lcx.data.task import PairedTexts, Task, Texts, places
from lcx.data.templates import ChatML, ChatTemplate, Llama2Chat, Llama3Chat, Plain, Turn, Vicuna
from lcx.data.tokenizers import (
    BPE,
    TOKENIZERS,
    Bytes,
    Tokenizer,
    TokenizerFile,
    TokenizerSpec,
    same_tokens,
    spells_as,
)

SOURCES: dict[str, type[Source]] = {
    c.__name__: c for c in (PythonCorpus, TextFiles, TFDS, Conversations, Pairs)
}
TEMPLATES: dict[str, type[ChatTemplate]] = {
    c.__name__: c for c in (Plain, ChatML, Llama2Chat, Llama3Chat, Vicuna, Jinja)
}
TASKS: dict[str, type[Task]] = {c.__name__: c for c in (Data, MQAR)}

__all__ = [
    "BPE",
    "MQAR",
    "SOURCES",
    "SPLITS",
    "TASKS",
    "TEMPLATES",
    "TFDS",
    "TOKENIZERS",
    "Bytes",
    "ChatML",
    "ChatTemplate",
    "Conversations",
    "Corpus",
    "Data",
    "Document",
    "Documents",
    "Jinja",
    "Llama2Chat",
    "Llama3Chat",
    "PairedTexts",
    "Pairs",
    "Plain",
    "PythonCorpus",
    "Source",
    "Task",
    "TextFiles",
    "Texts",
    "Tokenizer",
    "TokenizerFile",
    "TokenizerSpec",
    "Turn",
    "Vicuna",
    "places",
    "same_tokens",
    "spells_as",
]
