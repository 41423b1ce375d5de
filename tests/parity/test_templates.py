"""Chat templates, beside the published Jinja of their models as transformers renders it."""

import json
from pathlib import Path

import pytest

from lcx.data import ChatML, Jinja, Llama2Chat, Llama3Chat, Turn, Vicuna
from lcx.data.byte_level import ByteTokenizer
from lcx.data.documents import Documents
from lcx.data.encoding import encode, scored_of
from lcx.data.rendering import rendered
from lcx.data.tokenizers import TokenizerFile
from tests.parity.against_torch import NEEDED

transformers = pytest.importorskip("transformers", reason=NEEDED)
tokenizers = pytest.importorskip("tokenizers")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}"
)
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
  {% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for m in rest %}
  {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must alternate') }}
  {% endif %}
  {% if loop.index0 == 0 and system != false %}
    {% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}
  {% else %}{% set content = m['content'] %}{% endif %}
  {% if m['role'] == 'user' %}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {% elif m['role'] == 'assistant' %}
    {{- ' ' + content.strip() + ' ' + eos_token -}}
  {% endif %}
{% endfor %}
"""
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
VICUNA = """\
{% if messages[0]['role'] == 'system' %}
  {% set rest = messages[1:] %}{{ messages[0]['content'] + ' ' -}}
{% else %}
  {% set rest = messages %}
  {{- 'A chat between a curious user and an artificial intelligence assistant. ' -}}
  {{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " -}}
{% endif %}
{% for m in rest %}
  {%- if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' -}}
  {% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token -}}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
"""
EVERYTHING = """\
{%- set ns = namespace(n=0) %}
{{- bos_token }}{{ strftime_now('%Y') }}
{%- for m in messages %}
    {%- if m.role == 'tool' %}{% continue %}{% endif %}
    {%- set ns.n = ns.n + 1 %}
    {%- generation %}{{ ns.n ~ m | tojson }}{% endgeneration %}
{%- endfor %}
{%- if tools is none and documents is none %}{{ eos_token }}{% endif %}
"""
CHAT = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": " Hello? <b>\u00e9\U0001f600"},
    {"role": "assistant", "content": "Yes.\n\n  code\n"},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."},
]


def published(folder: Path, template: str, bos: str, eos: str, *more: str):
    """A tokenizer of transformers with this template, and where it lies."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(ByteTokenizer().json),
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=list(more),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


CASES = {
    "ChatML": (ChatML(), CHATML, "<s>", "<|im_end|>", "<|im_start|>"),
    "Llama2Chat": (Llama2Chat(), LLAMA2, "<s>", "</s>"),
    "Llama3Chat": (
        *(Llama3Chat(), LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
        *("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "Vicuna": (Vicuna(), VICUNA, "<s>", "</s>"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first", [0, 1])
def test_templates_write_what_published_ones_do(tmp_path: Path, case: str, first: int):
    ours, template, *names = CASES[case]
    theirs, jinja = published(tmp_path, template, *names), Jinja(str(tmp_path))
    for last in range(2, len(CHAT) + 1):
        chat = CHAT[first:last]
        turns = [Turn(m["role"], m["content"]) for m in chat]
        for header in (False, True):
            if header and chat[-1]["role"] == "assistant":
                continue  # not a place for an answer
            text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=header)
            assert ours.text(turns, header) == text
            assert jinja.text(turns, header) == text


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_transformers(tmp_path: Path, case: str):
    ours, template, *names = CASES[case]
    theirs = published(tmp_path, template, *names)
    tokenizer = TokenizerFile(str(tmp_path / "tokenizer.json")).load(Documents([], lambda i: b""))
    expected = theirs.apply_chat_template(CHAT, return_dict=False)
    if expected[0] == theirs.bos_token_id:
        expected = expected[1:]  # a document's own
    turns = [Turn(m["role"], m["content"]) for m in CHAT]
    for form in (ours, Jinja(str(tmp_path))):
        text, marks = rendered(form, turns)
        ids = encode(text, marks, tokenizer)
        assert ids.tolist() == expected
        said = ids[scored_of(ids, marks, tokenizer)]
        assert theirs.eos_token_id in said.tolist()


def test_the_mask_is_that_of_generation_blocks(tmp_path: Path):
    """Where a template marks its answers for transformers, prefixes find the same."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>\\n' }}"
        "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    theirs = published(tmp_path, template, "<s>", "<|im_end|>", "<|im_start|>")
    found = theirs.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    tokenizer = TokenizerFile(str(tmp_path / "tokenizer.json")).load(Documents([], lambda i: b""))
    text, marks = rendered(Jinja(str(tmp_path)), [Turn(m["role"], m["content"]) for m in CHAT])
    ids = encode(text, marks, tokenizer)
    assert ids.tolist() == found["input_ids"]
    scored = scored_of(ids, marks, tokenizer)
    assert scored.astype(int).tolist() == found["assistant_masks"]
    assert 0 < scored.sum() < len(scored)


def test_jinja_sees_what_transformers_gives(tmp_path: Path):
    theirs = published(tmp_path, EVERYTHING, "<s>", "</s>")
    chat = [*CHAT, {"role": "tool", "content": "left out"}]
    text = theirs.apply_chat_template(chat, tokenize=False)
    assert Jinja(str(tmp_path)).text([Turn(m["role"], m["content"]) for m in chat], False) == text
    assert json.dumps(CHAT[1], ensure_ascii=False) in text
