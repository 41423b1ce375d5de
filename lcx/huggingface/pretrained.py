"""Weights of published models, to begin from or to evaluate."""

import difflib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np

from lcx.block import Block
from lcx.cache import Digest
from lcx.huggingface.blinkdl import VERSIONS
from lcx.huggingface.config import Config
from lcx.huggingface.families import FAMILIES
from lcx.huggingface.family import Family
from lcx.huggingface.folder import Folder
from lcx.huggingface.peft import PeftFolder, adapter_at
from lcx.huggingface.peft_prompts import PromptFolder
from lcx.huggingface.state_dict import StateDict, folder_at
from lcx.huggingface.tensors import read_parameters, tensors
from lcx.model import LM
from lcx.parallel.mesh import Mesh, make_mesh, shardings
from lcx.paths import FilePath, resolved
from lcx.positions import PositionScheme
from lcx.types import Params

COMPUTED = (
    ".rotary_emb.inv_freq",
    *(f".{part}.{name}" for part in ("attn", "attention") for name in ("bias", "masked_bias")),
)
"""Ends of names of tensors that are no parameters: old files have frequencies and masks."""


@dataclass(frozen=True)
class Pretrained:
    """The weights of a published model: a folder with `config.json` and safetensors.

    Of the families in `lcx.huggingface.FAMILIES`; or, without a config, RWKV-4 to 7 as BlinkDL
    publishes them: the state dict alone, as safetensors. An experiment begins from it by
    `init_from=Pretrained(folder)`; its model is `Pretrained(folder).model()`, or one whose
    parameters have the same shapes, under another position scheme for instance.

    Where there is a `model.safetensors.index.json`, it alone says which tensors are read, and from
    which files; elsewhere `model.safetensors` is read. No other file is, whatever lies beside them.
    """

    folder: FilePath
    adapter: FilePath | None = None
    """A folder that peft has saved (`adapter_config.json`). A LoRA is merged into the weights as
    they are read: in fp32, rounded once to the model's dtype. A prompt or a prefix stands before
    every document; such a model can be evaluated and read from, and not be trained."""

    def model(self, position: PositionScheme | None = None) -> LM:
        """The architecture that the config tells, under its own positions or the ones given.

        Raises FileNotFoundError without a config, ValueError for what lcx does not have, and for
        anything in the config that it does not know.
        """
        config = Config(self._files.config, f"{self}: {self._files.told_by}")
        model = self.family.read(config)
        config.rest()
        if position is None:
            return model
        self.position  # noqa: B018  says where there is none to replace
        return replace(model, pattern=tuple(_under(block, position) for block in model.pattern))

    @property
    def position(self) -> PositionScheme:
        """The scheme of the mixers that take one. Raises ValueError where none does."""
        schemes = (_position(block) for block in self.model().pattern)
        found = next((scheme for scheme in schemes if scheme is not None), None)
        if found is None:
            raise ValueError(f"{self}: no mixer of its model takes a position scheme")
        return found

    @property
    def trained_length(self) -> int | None:
        """The longest text that the config says the model reads, in tokens; None: it says none."""
        said = self._files.config
        names = (
            "max_position_embeddings",
            "n_positions",
            "max_seq_len",
            "seq_length",
            "context_length",
        )
        return next((said[name] for name in names if said.get(name) is not None), None)

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Of parameters that hold what the config says the files hold: fp32 of fp16, too."""
        said = self._files.config.get("dtype") or self._files.config.get("torch_dtype")
        return "bfloat16" if said == "bfloat16" else "float32"

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that the config says end a text."""
        said = self._files.config.get("eos_token_id")
        return () if said is None else tuple(said) if isinstance(said, list) else (said,)

    def fingerprint(self) -> str:
        """A digest of `config.json` and of all that is read of the weights (`Folder.fingerprint`).

        Raises as `check` does where a file is missing or is no safetensors.
        """
        files = self._files.fingerprint()
        return files if self._adapter is None else str(Digest(files, self._adapter.fingerprint()))

    def check(self, model: LM) -> None:
        """Raise ValueError where the weights do not fit a model; reads their headers alone."""
        shapes = self._files.shapes
        unread = {name for name in shapes if not name.endswith(COMPUTED)}
        unread -= set(self.family.heads) if model.tied else set()
        try:
            expected = tensors(self.family, model)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from error
        for tensor in expected:
            name = self._named(tensor.name)
            if shapes.get(name) != tensor.shape:
                raise ValueError(
                    f"{self}: {name} is {shapes.get(name, 'absent')}, the model's "
                    f"{' and '.join(path for path, _ in tensor.parts)} asks for {tensor.shape}"
                )
            unread.discard(name)
        if unread:
            raise ValueError(f"{self}: {', '.join(sorted(unread)[:3])} have no place in the model")
        match self._adapter:
            case PeftFolder() as lora:
                lora.check(model, expected, self.family.heads)
            case PromptFolder() as prompt:
                prompt.check(model)

    def load(self, model: LM, cut: Mesh | None = None) -> Params:
        """The parameters, in the model's dtype.

        cut: the devices that share them; each reads its part. None: whole, on the default device.
        Raises ValueError where they do not fit.
        """
        self.check(model)
        placed = None
        if cut is not None:
            abstract = jax.eval_shape(model.init, jax.random.key(0))
            placed = shardings(abstract, make_mesh(cut))

        own = self._adapter

        def read(name: str, index: Any = None) -> np.ndarray:
            tensor = self._files.read(self._named(name), index)
            return own.applied(name, tensor, index) if isinstance(own, PeftFolder) else tensor

        params = read_parameters(self.family, model, read, placed)
        return own.placed(model, params) if isinstance(own, PromptFolder) else params

    @property
    def virtual_tokens(self) -> int:
        """How many stand before every document; a plain model has none."""
        return self._adapter.tuning.tokens if isinstance(self._adapter, PromptFolder) else 0

    def _named(self, tensor: str) -> str:
        """As the files have it: saved without its head, a model lacks the first part of names."""
        bare = tensor.partition(".")[2]
        shapes = self._files.shapes
        return bare if tensor not in shapes and bare in shapes else tensor

    @cached_property
    def family(self) -> Family:
        """By its config's `model_type`. Raises ValueError for one that is not known."""
        kind = self._files.config.get("model_type")
        families = VERSIONS if isinstance(self._files, StateDict) else FAMILIES
        known = {kind: family for family in families for kind in family.kinds}
        if kind not in known:
            named = "names no model_type" if kind is None else f"is of model_type {kind!r}"
            near = difflib.get_close_matches(str(kind), known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"{self}: {self._files.told_by} {named}{hint}; those known are {', '.join(known)}"
            )
        return known[kind]

    @cached_property
    def _adapter(self) -> PeftFolder | PromptFolder | None:
        return None if self.adapter is None else adapter_at(resolved(self.adapter), str(self))

    @cached_property
    def _files(self) -> Folder:
        return folder_at(resolved(self.folder), str(self))


def _position(block: Block) -> PositionScheme | None:
    return getattr(block.mixer, "position", None)


def _under(block: Block, position: PositionScheme) -> Block:
    """The block with this scheme, where its mixer takes one."""
    mixer: Any = block.mixer
    if _position(block) is None:
        return block
    return replace(block, mixer=replace(mixer, position=position))
