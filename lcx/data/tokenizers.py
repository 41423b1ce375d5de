"""How text becomes token ids and back, losing nothing.

Every tokenizer here is over bytes: `decode(encode(text)) == text` for any bytes at all, and each
token stands for a known number of bytes, so that losses per token become bits per byte.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from lcx import cache
from lcx.data.byte_level import BOS_NAMES, ByteLevelTokenizer, ByteTokenizer
from lcx.data.documents import Documents
from lcx.data.sources import Source
from lcx.paths import FilePath


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer that is ready to use."""

    vocab_size: int
    bos: int
    """The id that begins every document."""
    byte_lengths: Int[np.ndarray, " vocab"]
    """How many bytes each token stands for; 0 for BOS and other special tokens."""
    fingerprint: str
    """Equal for two tokenizers exactly if they are the same."""

    @property
    def special(self) -> Mapping[str, int]:
        """The ids of special tokens, BOS among them, by name. No text is encoded as one of them."""
        ...

    def encode(self, text: bytes) -> Int[np.ndarray, " n"]:
        """Ids (int32) of `text`, without BOS."""
        ...

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> bytes:
        """The bytes that `ids` stand for. Raises ValueError on an id outside the vocabulary."""
        ...


@runtime_checkable
class TokenizerSpec(Protocol):
    """A tokenizer, as a spec."""

    def load(self, train: Documents) -> Tokenizer:
        """The tokenizer; one that has to be trained sees these documents alone."""
        ...


@dataclass(frozen=True)
class Bytes:
    """A token is a byte; 256 is BOS. Nothing to train, and the same for every text."""

    def load(self, train: Documents) -> Tokenizer:
        return ByteTokenizer()


@dataclass(frozen=True)
class BPE:
    """Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2), trained on the train split.

    `vocab` counts the 256 bytes, BOS, special tokens and the merges. A text too small for that many
    merges gives a smaller vocabulary. Of a word longer than `WORD` bytes, as text without spaces
    has them, merges are learned in parts of that length; they apply anywhere. Trained once per
    corpus and size, and kept in the cache. A long training shows its progress.
    """

    vocab: int = 2048
    special: tuple[str, ...] = ()
    """Tokens besides BOS that no text becomes, which chat templates write: "<|im_end|>", say."""
    of: Source | None = None
    """Whose train split it is trained on, `Data(of)` being what is split; None: its own data's.
    Stages of one training, on other texts each, need one tokenizer."""

    def __post_init__(self):
        least = 257 + len(self.special)
        if self.vocab < least:
            raise ValueError(
                f"BPE(vocab={self.vocab}): at least {least}, for 256 bytes and BOS"
                + f", and {len(self.special)} for special tokens" * bool(self.special)
            )
        if len({BOS_NAMES[0], *self.special}) <= len(self.special) or "" in self.special:
            raise ValueError(f"BPE: special tokens have names of their own, not {self.special}")

    def load(self, train: Documents) -> Tokenizer:
        if self.of is not None:
            from lcx.data.corpus import Data

            train = Data(self.of).splits()["train"]
        if not len(train):
            raise ValueError(
                f"{self} is trained on the train split, which holds no document: add documents, "
                "hold out a smaller share, or pieces of long documents: Data(..., split='within')"
            )

        def make(path: Path) -> None:
            path.write_text(_trained(train, self.vocab, self.special), encoding="utf-8")

        key = cache.Digest("BPE", str(self.vocab), train.fingerprint, *self.special)
        path = cache.once(cache.folder() / "bpe" / f"{key}.json", make)
        return ByteLevelTokenizer(path.read_text(encoding="utf-8"), str(self))


@dataclass(frozen=True)
class TokenizerFile:
    """A published tokenizer: a JSON file of the `tokenizers` library.

    Over bytes, as GPT-2's and Llama 3's, or one that falls back to them, as Llama 1's and 2's. Its
    BOS is the first of `BOS_NAMES` that it knows. What would change the text is left out: Unicode
    normalisation (NFC), which some have, and the space that some, as Llama 1 and 2, put before the
    first word, whether a normalizer (Prepend) or a pre-tokenizer (Metaspace, ByteLevel) does it:
    the ids of "a text" are those that transformers gives without that space, and the ids of
    " a text" those that it gives for "a text". Raises FileNotFoundError where there is no file, and
    ValueError on one that holds no tokenizer, one without a BOS, or one that does not give back
    every byte of UTF-8.
    """

    path: FilePath

    def load(self, train: Documents) -> Tokenizer:
        path = Path(self.path).expanduser()
        if not path.is_file():
            here = (
                "is a folder; its tokenizer.json" if path.is_dir() else "no such file; a JSON file"
            )
            raise FileNotFoundError(f"{self}: {here} of the tokenizers library is needed")
        try:
            json = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self}: not UTF-8 (byte {error.start}), so no JSON of the tokenizers library"
            ) from None
        except PermissionError:
            raise ValueError(f"{self}: no permission to read it") from None
        return ByteLevelTokenizer(json, str(self))


TOKENIZERS: dict[str, type[TokenizerSpec]] = {c.__name__: c for c in (Bytes, BPE, TokenizerFile)}


def same_tokens(here: Any, there: Any) -> bool:
    """Whether two corpora's tokenizers give the same ids, as far as they tell."""
    if isinstance(here, Tokenizer) and isinstance(there, Tokenizer):
        return here.fingerprint == there.fingerprint
    return type(here) is type(there) and here.vocab_size == there.vocab_size


def spells_as(tokenizer: Any, path: Path) -> bool:
    """Whether ids stand for the same tokens in a `tokenizer.json`; True where one does not tell."""
    if not path.is_file() or not isinstance(tokenizer, ByteTokenizer | ByteLevelTokenizer):
        return True
    from tokenizers import Tokenizer as Read

    here, there = Read.from_str(tokenizer.json), Read.from_file(str(path))
    return here.get_vocab(with_added_tokens=True) == there.get_vocab(with_added_tokens=True)


WORD = 1024
"""Bytes: BPE learns merges in parts of words of this length at most. Each merge moves what follows
it in its word, which in one word of megabytes takes for ever. To encode has no such limit."""

LONG = 2**22
"""Bytes: to train on so many takes seconds, and without spaces many, so it shows its progress."""


def _trained(documents: Documents, vocab: int, special: Sequence[str] = ()) -> str:
    """A byte-level BPE trained on the documents, as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    def texts() -> Iterator[str]:
        for document in documents:
            # Bytes that are not UTF-8 are never merged, so they teach nothing.
            yield document.text.decode("utf-8", "ignore")

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.Split(Regex(f".{{{WORD}}}"), "isolated")
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence([words, parts])
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS_NAMES[0], *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=_is_watched() and sum(len(d.text) for d in documents) >= LONG,
    )
    model.train_from_iterator(texts(), trainer, length=len(documents))
    model.pre_tokenizer = words
    return model.to_str()


def _is_watched() -> bool:
    """Whether a bar would be seen; into a file the library writes empty lines."""
    return sys.stderr.isatty()
