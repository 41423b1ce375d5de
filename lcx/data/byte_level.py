"""Tokenizers over bytes, ready to use: of single bytes, and of the `tokenizers` library."""

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int

from lcx import cache

SPACE = "\u2581"
"""How SentencePiece writes a space."""

BOS_NAMES = ("<s>", "<|begin_of_text|>", "<|endoftext|>", "<bos>")


class ByteTokenizer:
    """Ids 0 to 255 are the bytes, 256 is BOS."""

    vocab_size = 257
    bos = 256
    fingerprint = "bytes"
    special = MappingProxyType({BOS_NAMES[0]: bos})

    def __init__(self):
        self.byte_lengths = (np.arange(257) != self.bos).astype(np.int32)

    @property
    def json(self) -> str:
        """The same tokenizer as a file of the `tokenizers` library, BOS being `BOS_NAMES[0]`."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        model = Tokenizer(models.BPE({char: byte for byte, char in enumerate(BYTE_TO_CHAR)}, []))
        model.add_special_tokens([AddedToken(BOS_NAMES[0], special=True)])
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.decoder = decoders.ByteLevel()
        return model.to_str()

    def encode(self, text: bytes) -> Int[np.ndarray, " n"]:
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> bytes:
        ids = _checked(ids, self.vocab_size)
        return ids[ids != self.bos].astype(np.uint8).tobytes()


class ByteLevelTokenizer:
    """A tokenizer of the `tokenizers` library that has a token for each byte of UTF-8.

    Most have one for all 256; GPT-NeoX's has none for the 13 that UTF-8 never holds. Valid UTF-8
    goes through it; each other byte becomes the token of that single byte. Text that happens to
    spell a special token is plain text. `where` names it in errors.

    Two alphabets are in use: a character for each byte (GPT-2), or characters, with tokens <0x00>
    to <0xFF> for those that have none of their own, and SPACE for a space (SentencePiece). In the
    second a SPACE of the text itself is written in bytes.
    """

    def __init__(self, json: str, where: str):
        import tokenizers

        self.json = json
        try:
            self._model = tokenizers.Tokenizer.from_str(json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{where}: the tokenizers library cannot read it: {error}") from None
        self._model.encode_special_tokens = True
        self._model.no_truncation()
        self._model.no_padding()
        if isinstance(self._model.normalizer, tokenizers.normalizers.NFC):
            self._model.normalizer = None
        _put_no_space_first(self._model.pre_tokenizer)

        vocab = self._model.get_vocab(with_added_tokens=True)
        self.bos = next((vocab[name] for name in BOS_NAMES if name in vocab), -1)
        if self.bos < 0:
            raise ValueError(f"{where}: no BOS among its tokens; looked for {', '.join(BOS_NAMES)}")
        self._pieces = "<0x00>" in vocab
        names = [f"<0x{byte:02X}>" for byte in range(256)] if self._pieces else BYTE_TO_CHAR
        missing = {byte for byte, name in enumerate(names) if name not in vocab}
        if missing - NOT_IN_UTF8:
            raise ValueError(
                f"{where}: not byte-level: {len(missing)} of the 256 bytes have no "
                "token of their own, so bytes could not be counted. Byte-level BPE (as of GPT-2 "
                "or Llama 3), or one that falls back to bytes (Llama 2), is needed"
            )
        if self._pieces:
            self._model.normalizer = tokenizers.normalizers.Replace(" ", SPACE)
        self._byte_ids = [vocab.get(name, -1) for name in names]
        added = self._model.get_added_tokens_decoder().items()
        self.special = {token.content: index for index, token in added if token.special}
        self.special |= {name: i for name, i in vocab.items() if i == self.bos}
        self._where = where
        self.vocab_size = max(vocab.values()) + 1
        self._bytes = self._bytes_of_tokens(vocab)
        self.byte_lengths = np.array([len(token) for token in self._bytes], np.int32)
        self.fingerprint = str(cache.Digest(json))
        self._refuse_if_lossy(where)

    def encode(self, text: bytes) -> Int[np.ndarray, " n"]:
        # "surrogateescape" writes an undecodable byte b as U+DC00 + b, which valid UTF-8 never has.
        ids: list[int] = []
        apart = f"([\udc80-\udcff{SPACE if self._pieces else ''}]+)"
        for span in re.split(apart, text.decode("utf-8", "surrogateescape")):
            if re.match(apart, span):
                ids.extend(map(self._byte_id, span.encode("utf-8", "surrogateescape")))
            else:
                ids.extend(self._model.encode(span, add_special_tokens=False).ids)
        return np.array(ids, np.int32)

    def _byte_id(self, byte: int) -> int:
        if self._byte_ids[byte] < 0:
            raise ValueError(
                f"{self._where}: no token for the byte 0x{byte:02X}, which a text holds that is "
                "not UTF-8. Convert that text, or take a tokenizer of all 256 bytes"
            )
        return self._byte_ids[byte]

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> bytes:
        return b"".join(self._bytes[i] for i in _checked(ids, self.vocab_size))

    def _bytes_of_tokens(self, vocab: dict[str, int]) -> list[bytes]:
        """What each id stands for. Added tokens are plain text, the others are in the alphabet."""
        char_to_byte = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}
        added = self._model.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for token, index in vocab.items():
            if index not in added and index != self.bos:
                if self._pieces:
                    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
                    text = token.replace(SPACE, " ").encode()
                    table[index] = bytes.fromhex(byte[1]) if byte else text
                else:
                    # A character outside it can only be in a token that no text reaches.
                    table[index] = bytes(char_to_byte[c] for c in token if c in char_to_byte)
        for index, token in added.items():
            if not token.special and index != self.bos:
                table[index] = token.content.encode()
        return table

    def _refuse_if_lossy(self, where: str) -> None:
        """Tries it, which takes no list of the normalizers and splitters that lose something."""
        added = [token.content for token in self._model.get_added_tokens_decoder().values()]
        for probe in (*PROBES, *(f" {content} " for content in added)):
            text = probe.encode()
            found = self.decode(self.encode(text))
            if found != text:
                raise ValueError(
                    f"{where}: it changes text: {text!r} comes back as {found!r}, so bytes could "
                    "not be counted. A tokenizer that keeps every byte is needed"
                )


NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
"""Bytes that valid UTF-8 never holds (RFC 3629, section 1)."""

PROBES = (
    "word",  # a space put before the first word
    "  Two  spaces,\ttabs\r\n\n and CAPITALS ",  # white space dropped, letters lowered
    "don't 3.14159 2024-01-02",
    "caf\u00e9 cafe\u0301 \ufb01 \u2460 \u00a0",  # characters composed, decomposed, replaced
    "\u4e2d\u6587 \u0627\u0644\u0639 \U0001f600\ufeff\x00\x7f",  # characters unknown to it
)
"""Text that a tokenizer which is not over bytes gives back changed."""


def _byte_to_char() -> str:
    """The character by which byte-level vocabularies write each byte (GPT-2's `bytes_to_unicode`).

    Printable Latin-1 stands for itself; the other bytes, in order, are U+0100 and on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_TO_CHAR = _byte_to_char()


def _put_no_space_first(splitter: Any) -> None:
    """A pre-tokenizer of the library that puts a space before the first word is told not to."""
    from tokenizers.pre_tokenizers import ByteLevel, Metaspace
    from tokenizers.pre_tokenizers import Sequence as Several

    if isinstance(splitter, Several):
        for part in splitter:
            _put_no_space_first(part)
    elif isinstance(splitter, Metaspace):
        splitter.prepend_scheme = "never"
    elif isinstance(splitter, ByteLevel):
        splitter.add_prefix_space = False


def _checked(ids: Sequence[int] | Int[np.ndarray, " n"], vocab: int) -> Int[np.ndarray, " n"]:
    ids = np.asarray(ids, np.int64)
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab):
        raise ValueError(
            f"ids from {ids.min()} to {ids.max()}, the vocabulary has 0 to {vocab - 1}"
        )
    return ids
