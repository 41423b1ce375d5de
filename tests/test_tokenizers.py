"""Tokenizers: bytes, BPE trained here, and files of published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcx.data import BPE, Bytes, Data, Documents, TextFiles, Tokenizer, TokenizerFile
from lcx.data import tokenizers as lcx_tokenizers
from lcx.data.byte_level import BYTE_TO_CHAR, NOT_IN_UTF8, ByteLevelTokenizer

NOTHING = Documents([], lambda i: b"")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LCX_CACHE", str(tmp_path / "cache"))


def write(folder: Path, texts: dict[str, bytes]) -> TextFiles:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return TextFiles(str(folder / "*.txt"))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    source = write(folder, {"a.txt": Path(__file__).read_bytes() + "żółw 你好 \xff".encode()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LCX_CACHE", str(folder / "cache"))
        return BPE(400).load(source.documents())


ANY_BYTES = st.lists(
    st.binary(max_size=12)
    | st.text(max_size=20).map(str.encode)
    | st.sampled_from([b"<s>", b"def test(", b"assert ", b"\xed\xa0\x80", b"\xe4\xbd", b"\r\n "])
).map(b"".join)


@given(ANY_BYTES)
def test_any_bytes_come_back(bpe: Tokenizer, text: bytes):
    for tokenizer in (Bytes().load(NOTHING), bpe):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.bos not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([tokenizer.bos, *ids.tolist()]) == text
        assert tokenizer.byte_lengths[ids].sum() == len(text)
        assert tokenizer.byte_lengths[tokenizer.bos] == 0
        assert tokenizer.byte_lengths.shape == (tokenizer.vocab_size,)


def test_bpe_compresses_and_has_every_byte(bpe: Tokenizer):
    assert bpe.vocab_size == 400
    text = Path(__file__).read_bytes()
    assert len(bpe.encode(text)) < 0.6 * len(text)
    every = bytes(range(256))
    assert bpe.decode(bpe.encode(every)) == every
    assert (bpe.byte_lengths >= 1).sum() == 399
    with pytest.raises(ValueError, match="to 400, the vocabulary has 0 to 399"):
        bpe.decode([3, 400])


def test_bpe_is_trained_once_on_train_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = {f"{i}.txt": b"some words and words and more %d " % i * 20 for i in range(20)}
    data = Data(write(tmp_path / "a", texts), BPE(270), validation=0.2, test=0.3)
    corpus = data.load()
    held_out = corpus.documents("test").names[0]
    changed = texts | {held_out: b"entirely different letters " * 20}
    other = Data(write(tmp_path / "b", changed), BPE(270), validation=0.2, test=0.3)

    with monkeypatch.context() as patch:
        patch.setenv("LCX_CACHE", str(tmp_path / "elsewhere"))
        assert data.load().tokenizer.fingerprint == corpus.tokenizer.fingerprint

    monkeypatch.setattr(lcx_tokenizers, "_trained", None)
    for again in (data, other):
        assert again.load().tokenizer.fingerprint == corpus.tokenizer.fingerprint
    assert other.load().fingerprint != corpus.fingerprint


def hf_tokenizer(path: Path, bos: str = "<s>", **changes: object) -> TokenizerFile:
    """A byte-level tokenizer file, with parts of its JSON replaced."""
    import tokenizers

    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(["some words, more words"], 280, special_tokens=[bos])
    content = json.loads(model.to_str()) | changes
    path.write_text(json.dumps(content))
    return TokenizerFile(str(path))


@pytest.mark.parametrize("bos", ["<s>", "<|begin_of_text|>", "<|endoftext|>", "<bos>"])
def test_tokenizer_file(tmp_path: Path, bos: str):
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    spec = hf_tokenizer(tmp_path / "t.json", bos, truncation=truncation, normalizer={"type": "NFC"})
    tokenizer = spec.load(NOTHING)
    text = f"more words \xff {bos} cafe\u0301".encode() + b"\xff\xfe"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.bos == 0
    assert len(tokenizer.encode(b"words")) < 5


def test_tokenizer_file_without_the_bytes_that_utf_8_never_holds(tmp_path: Path):
    """GPT-NeoX's, and so Pythia's, is one."""
    path = tmp_path / "t.json"
    hf_tokenizer(path)
    content = json.loads(path.read_text())
    never = {BYTE_TO_CHAR[byte] for byte in NOT_IN_UTF8}
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {token: n for token, n in vocab.items() if token not in never}
    path.write_text(json.dumps(content))
    tokenizer = TokenizerFile(str(path)).load(NOTHING)
    text = "caf\u00e9 \u4e2d\u6587 \U0001f600".encode() + b"\x80"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(ValueError, match=r"t\.json.*: no token for the byte 0xFF, .* not UTF-8"):
        tokenizer.encode(b"words \xff")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bos": "[CLS]"}, r"no BOS .* <s>, <\|begin_of_text\|>, <\|endoftext\|>, <bos>"),
        ({"normalizer": {"type": "Lowercase"}}, "it changes text: .*CAPITALS.* comes back as"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "it changes text"),
        ({"model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1}, "merges": []}}, "255 of the 256"),
        ({"model": {"type": "nonsense"}}, "cannot read it"),
    ],
)
def test_tokenizer_file_that_would_miscount_is_refused(tmp_path: Path, changes, message):
    spec = hf_tokenizer(tmp_path / "t.json", **changes)
    with pytest.raises(ValueError, match=message):
        spec.load(NOTHING)


def test_vocabulary_below_the_bytes():
    with pytest.raises(ValueError, match="at least 257, for 256 bytes and BOS"):
        BPE(256)


def llama_2_like() -> str:
    """A tokenizer built as that of Llama 2 is, with a few merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    words += [*"▁abcdehlortw,.", "▁t", "he", "▁the", "lo"]
    vocab = {word: i for i, word in enumerate(words)}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("l", "o")]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*strip, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made.to_str()


@given(st.binary(max_size=60) | st.text(alphabet="the lo▁<s>é\n", max_size=60).map(str.encode))
def test_a_tokenizer_that_falls_back_to_bytes_loses_nothing(text):
    tokenizer = ByteLevelTokenizer(llama_2_like(), "here")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text)


def test_a_tokenizer_that_falls_back_to_bytes_uses_its_words():
    tokenizer = ByteLevelTokenizer(llama_2_like(), "here")
    assert tokenizer.bos == 1
    ids = tokenizer.encode(b"lo the <s>\xff")
    pieces = [tokenizer.decode(ids[i : i + 1]) for i in range(len(ids))]
    assert pieces == [b"lo", b" the", b" ", b"<", b"s", b">", b"\xff"]
    assert tokenizer.decode([1]) == b""


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_a_space_that_would_be_put_first_is_left_out(tmp_path: Path, scheme: str):
    """As Llama's file has it when transformers 5 writes it; and a byte-level one that has it."""
    prepended = llama_2_like()
    content = json.loads(prepended)
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": scheme,
        "split": False,
    }
    metaspace = ByteLevelTokenizer(json.dumps(content), "here")
    for text in (b"the lo", b" the lo", b"  \xe2\x96\x81 <s>the\xff", b""):
        ids = metaspace.encode(text)
        assert metaspace.decode(ids) == text
        assert ids.tolist() == ByteLevelTokenizer(prepended, "here").encode(text).tolist()
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    byte_level["use_regex"] = True
    several = {"type": "Sequence", "pretokenizers": [byte_level]}
    for splitter in (byte_level, several):
        found = hf_tokenizer(tmp_path / "t.json", pre_tokenizer=splitter).load(NOTHING)
        plain = hf_tokenizer(tmp_path / "u.json").load(NOTHING)
        assert found.encode(b"words more").tolist() == plain.encode(b"words more").tolist()


def test_merges_are_learned_in_parts_of_long_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A line without spaces is one word, and to merge in it takes as long as it is, each time."""
    text = b"some words, more words\n" * 9
    short = write(tmp_path / "short", {"a.txt": text + b"ab" * 16}).documents()
    whole = lcx_tokenizers._trained(short, 280)
    monkeypatch.setattr(lcx_tokenizers, "WORD", 32)
    assert lcx_tokenizers._trained(short, 280) == whole
    long = write(tmp_path / "long", {"a.txt": text + b"ab" * 5000}).documents()
    found = ByteLevelTokenizer(lcx_tokenizers._trained(long, 280), "here")
    assert found.byte_lengths.max() == 32
    ids = found.encode(long[0].text)  # which knows of no parts
    assert found.decode(ids) == long[0].text
    assert len(ids) < 5000 * 2 / 32 + len(text)


def test_a_long_training_shows_its_progress(monkeypatch: pytest.MonkeyPatch):
    from tokenizers import trainers

    shown, make = [], trainers.BpeTrainer

    def trainer(**settings):
        shown.append(settings["show_progress"])
        return make(**settings)

    monkeypatch.setattr(trainers, "BpeTrainer", trainer)
    documents = Documents(["a", "b"], lambda i: b"some words")
    for watched, least in ((True, 20), (True, 21), (False, 20)):
        monkeypatch.setattr(lcx_tokenizers, "LONG", least)
        monkeypatch.setattr(lcx_tokenizers, "_is_watched", lambda watched=watched: watched)
        lcx_tokenizers._trained(documents, 260)
    assert shown == [True, False, False]


def test_a_file_that_is_none_is_named(tmp_path: Path):
    for path, message in ((tmp_path / "t.json", "no such file"), (tmp_path, "is a folder; its")):
        with pytest.raises(FileNotFoundError, match=message):
            TokenizerFile(str(path)).load(NOTHING)
    (tmp_path / "t.json").write_bytes(b'{"version": "\xff"}')
    with pytest.raises(ValueError, match=r"t\.json'\): not UTF-8 \(byte 13\)"):
        TokenizerFile(str(tmp_path / "t.json")).load(NOTHING)


def test_special_tokens_are_what_no_text_becomes(tmp_path):
    source = write(tmp_path / "texts", {"a.txt": b"<|im_end|> and <|im_end|> again. " * 40})
    tokenizer = BPE(280, ("<|im_start|>", "<|im_end|>")).load(source.documents())
    assert {"<|im_start|>", "<|im_end|>"} < tokenizer.special.keys()
    ids = tokenizer.encode(b"<|im_end|>")
    assert not set(ids.tolist()) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == b"<|im_end|>"
    assert BPE(280).load(source.documents()).fingerprint != tokenizer.fingerprint


def test_stages_of_a_training_share_a_tokenizer(tmp_path):
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    before = write(tmp_path / "a", {f"{w}.txt": f"{w} {w}s ".encode() * 60 for w in words})
    after = write(tmp_path / "b", {f"{w}.txt": f"un{w} ".encode() * 60 for w in words})
    own, shared = BPE(300), BPE(300, of=before)
    first, then = Data(before, own).load(), Data(after, shared).load()
    assert first.tokenizer.fingerprint == then.tokenizer.fingerprint
    assert Data(after, own).load().tokenizer.fingerprint != first.tokenizer.fingerprint


@pytest.mark.parametrize("special", [("a", "a"), ("",), ("<s>",)])
def test_special_tokens_have_names_of_their_own(special):
    with pytest.raises(ValueError, match="special tokens have names of their own"):
        BPE(special=special)
    with pytest.raises(ValueError, match=r"at least 258, .* and 1 for special tokens"):
        BPE(257, ("a",))
