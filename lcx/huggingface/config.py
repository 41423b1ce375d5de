"""A `config.json` that is read to its end: what nobody asks for is refused, not ignored."""

from collections.abc import Mapping
from typing import Any

NEUTRAL = frozenset(
    "architectures model_type transformers_version torch_dtype dtype auto_map _name_or_path "
    "_attn_implementation attn_implementation use_cache return_dict output_attentions "
    "output_hidden_states is_encoder_decoder is_decoder add_cross_attention "
    "cross_attention_hidden_size chunk_size_feed_forward id2label label2id problem_type "
    "finetuning_task task_specific_params tokenizer_class prefix gradient_checkpointing "
    "pretraining_tp max_position_embeddings initializer_range attention_dropout hidden_dropout "
    "resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation "
    "summary_first_dropout summary_proj_to_labels classifier_dropout bos_token_id eos_token_id "
    "pad_token_id sep_token_id decoder_start_token_id tie_word_embeddings".split()
)
"""What changes nothing that a model computes when it reads: names, first values, dropout, and which
tokens begin and end texts. `tie_word_embeddings` is read wherever it is one of the two."""


class Config:
    """What a config says. A value of null is as if it were not there."""

    def __init__(self, said: Mapping[str, Any], where: str):
        """where: names the config in messages."""
        self.said, self.where = said, where
        self.neutral: set[str] = set(NEUTRAL)
        """Names that say nothing of what the model computes."""
        self._asked: set[str] = set()
        self.parts: list[Config] = []
        """Of the dicts in it that were asked for."""

    def __contains__(self, name: str) -> bool:
        self._asked.add(name)
        return self.said.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        """Raises ValueError where it is not said."""
        if name not in self:
            raise ValueError(f"{self.where} does not say {name}")
        return self.said[name]

    def get(self, name: str, otherwise: Any = None) -> Any:
        return self.said[name] if name in self else otherwise

    def count(self, name: str, otherwise: int | None = None) -> int:
        """A whole number from 1 on; without `otherwise` it has to be said. Raises ValueError."""
        value = self[name] if otherwise is None else self.get(name, otherwise)
        if type(value) is not int or value < 1:
            raise ValueError(
                f"{self.where}: {name} is {value!r}, and has to be a whole number from 1 on"
            )
        return value

    def agreed(self, *names: str) -> int:
        """What `count` gives under any of these names. Raises ValueError where they differ."""
        found = {name: self.count(name) for name in names if name in self}
        if not found:
            raise ValueError(f"{self.where} does not say {names[0]}")
        if len(set(found.values())) > 1:
            said = ", ".join(f"{name} {value}" for name, value in found.items())
            raise ValueError(f"{self.where} says different things: {said}")
        return next(iter(found.values()))

    def number(self, name: str, otherwise: float | None = None) -> float:
        """A number above 0; without `otherwise` it has to be said. Raises ValueError."""
        value = self[name] if otherwise is None else self.get(name, otherwise)
        if type(value) not in (int, float) or not value > 0:
            raise ValueError(f"{self.where}: {name} is {value!r}, and has to be a number above 0")
        return float(value)

    def flag(self, name: str, otherwise: bool) -> bool:
        """Raises ValueError for what is neither true nor false."""
        value = self.get(name, otherwise)
        if type(value) is not bool:
            raise ValueError(f"{self.where}: {name} is {value!r}, and has to be true or false")
        return value

    def among(self, name: str, known: Mapping[str, Any], otherwise: str | None = None) -> Any:
        """What `known` has for the word that is said. Raises ValueError for another word."""
        word = self[name] if otherwise is None else self.get(name, otherwise)
        if word not in known:
            raise ValueError(f"{self.where}: {name} is {word!r}; known are {', '.join(known)}")
        return known[word]

    def only(self, **fits: Any) -> None:
        """Raise ValueError where it says anything else of these names."""
        for name, value in fits.items():
            if name in self and self.said[name] != value:
                raise ValueError(
                    f"{self.where}: {name} is {self.said[name]!r}; only {value!r} is supported"
                )

    def without(self, *names: str) -> None:
        """These say nothing of what the model computes, in this family."""
        self.neutral.update(names)

    def part(self, name: str) -> "Config":
        """What a dict in it says, which is read to its end with the rest. Raises ValueError."""
        said = self.get(name, {})
        if not isinstance(said, Mapping):
            raise ValueError(f"{self.where}: {name} is {said!r}, and has to be an object {{...}}")
        kind = {"model_type": self.said.get("model_type")}
        self.parts.append(Config({**said, **kind}, f"{self.where}: {name}"))
        return self.parts[-1]

    def rest(self) -> None:
        """Raise ValueError where it says what was not asked for."""
        unknown = [
            name
            for name, value in self.said.items()
            if value is not None and name not in self._asked | self.neutral
        ]
        if unknown:
            raise ValueError(
                f"{self.where} says {', '.join(unknown)}, which lcx does not know of "
                f"{self.said.get('model_type')!r}, and will not ignore"
            )
        for part in self.parts:
            part.rest()
