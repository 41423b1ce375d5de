"""What can be known to fail, said before anything is trained."""

from collections.abc import Callable
from typing import Any

import jax

from lcx import spec
from lcx.adapters.split import check_merges
from lcx.adapters.split import shapes as tuned_shapes
from lcx.data import PairedTexts, Texts, places
from lcx.dense import nearest_divisors
from lcx.experiment import Experiment, Experiments, trained_on
from lcx.huggingface import Pretrained
from lcx.losses import OfPairs, OfWritten, needs_reference
from lcx.model import LM, parameters
from lcx.parallel.mesh import RULES, make_mesh, shardings
from lcx.protocols.base import check_measures
from lcx.types import HasHeads, SharesKeys


def validate(name: str, experiment: Experiment, experiments: Experiments, corpus: Texts) -> None:
    """Raise ValueError for whatever can be known to fail, with the variant and the place in it."""

    def within(where: str, check: Callable[..., Any], *arguments: Any) -> None:
        try:
            check(*arguments)
        except ValueError as error:
            raise ValueError(f"{name}: {where}: {error}") from error

    start = experiment.init_from
    within("model.vocab", _check_vocabulary, experiment, corpus)
    within("model", _shapes, experiment.model)
    within("model.positions", _check_positions, experiment)
    if isinstance(start, Pretrained):
        within("init_from", _check_published, experiment, start)
    elif start is not None:
        within(f"init_from={start!r}", _check_parent, experiment, experiments[start])
    within("tune", _check_tuning, experiment)
    within("evaluation", _check_evaluation, experiment)
    within("train.loss", _check_loss, experiment)
    within("mesh", experiment.mesh.check, len(jax.devices()), jax.process_count())
    within("mesh", check_cuts, experiment)
    within("train.optimizer", _check_moments, experiment)
    within("train", check_pairs, experiment, corpus)
    within("evaluation", corpus.check, experiment.train.length, experiment.evaluation)
    within("train.evaluate_every", _check_validation, experiment, corpus)


def _check_vocabulary(experiment: Experiment, corpus: Texts) -> None:
    has, needed = experiment.model.vocabulary, corpus.tokenizer.vocab_size
    if has < needed:  # a table may be padded: ids beyond the tokenizer's never occur
        raise ValueError(f"is {has}, the tokenizer has {needed} tokens")


def _check_positions(experiment: Experiment) -> None:
    """Vectors of positions: one for each that there will be."""
    table, train = experiment.model.positions, experiment.train
    if table is None:
        return
    most = train.length if train.positions is None else train.positions.longest
    longest = max(most if train.steps else 0, experiment.evaluation.longest)
    longest += experiment.virtual_tokens
    if longest > table.capacity:
        raise ValueError(
            f"has vectors for texts of {table.capacity} tokens, and there are some of {longest}"
        )


def _check_published(experiment: Experiment, start: Pretrained) -> None:
    start.check(experiment.model)
    if start.virtual_tokens and not experiment.as_published:
        raise ValueError(
            "has virtual tokens before its documents, from which no training begins; "
            "train.steps=0 evaluates it"
        )


def _check_parent(experiment: Experiment, begun: Experiment) -> None:
    """Another variant, whose parameters this one takes."""
    if begun.tune is not None:
        check_merges(begun.tune, begun.model)
    here, there = _shapes(experiment.model), _shapes(begun.model)
    for path in sorted(here.keys() | there.keys()):
        if here.get(path) != there.get(path):
            raise ValueError(
                f"{path} is {here.get(path, 'absent')} here, {there.get(path, 'absent')} there"
            )


def _check_tuning(experiment: Experiment) -> None:
    if experiment.tune is None:
        return
    if experiment.init_from is None or not experiment.train.steps:
        raise ValueError("trains some parameters of `init_from`, so give it, and steps")
    tuned_shapes(experiment.tune, experiment.model)


def _check_evaluation(experiment: Experiment) -> None:
    protocol = experiment.evaluation
    check_measures(protocol)
    if protocol.writes is not None:
        _check_writes(type(protocol).__name__, experiment)


def _check_loss(experiment: Experiment) -> None:
    loss, train = experiment.train.loss, experiment.train
    if isinstance(loss, OfWritten) and train.steps:
        loss.check(train.length)
        _check_writes(type(loss).__name__, experiment)


def _check_writes(what: str, experiment: Experiment) -> None:
    if experiment.mesh.seq > 1:
        raise ValueError(
            f"{what} has text written, a token at a time, which cannot be cut along a sequence: "
            f"mesh.seq={experiment.mesh.seq}"
        )


def _check_moments(experiment: Experiment) -> None:
    """The optimizer's, which have to lie where the parameters do."""
    model, tune = experiment.model, experiment.tune
    if tune is None:
        params: Any = jax.eval_shape(model.init, jax.random.key(0))
    else:
        params = tuned_shapes(tune, model)
    optimizer = experiment.train.optimizer.transform(experiment.train.steps)
    shardings(jax.eval_shape(optimizer.init, params), make_mesh(experiment.mesh))


def _check_validation(experiment: Experiment, corpus: Texts) -> None:
    train = experiment.train
    if train.evaluate_every is None:
        return
    there = places(trained_on(train.loss, corpus), train.length, "validation")
    needed = train.rows * train.length
    if there is not None and there < needed:
        raise ValueError(
            f"the validation split has {there} tokens, fewer than the {train.rows} rows of "
            f"{train.length} that are scored at a time; hold out more (data.validation), add "
            "documents, or leave evaluate_every at None"
        )


def check_cuts(experiment: Experiment) -> None:
    """Raise ValueError where the mesh does not divide what it cuts, with the nearest that does."""
    model, train, mesh = experiment.model, experiment.train, experiment.mesh

    def divides(ways: int, axes: str, what: str, size: int) -> None:
        if size % ways:
            near = nearest_divisors(size, ways)
            raise ValueError(
                f"{axes} = {ways} does not divide {what}, {size}; nearest that do: {near}"
            )

    if train.steps:
        divides(mesh.rows, "data x fsdp x expert", "train.batch's rows at a time", train.rows)
        divides(mesh.seq, "seq", "train.length", train.length)
    divides(mesh.fsdp, "fsdp", "model.width", model.width)
    for place, block in enumerate(model.pattern):
        for name, sublayer in block.sublayers.items():
            where = f"model.pattern.{place}.{name}"
            if isinstance(sublayer, HasHeads):
                count = sublayer.head_count(model.dims)
                divides(mesh.model, "model", f"the heads of {where}", count)
            if isinstance(sublayer, SharesKeys):
                count = sublayer.key_head_count(model.dims)
                divides(mesh.model, "model", f"the heads of keys of {where}", count)
    for path, leaf in parameters(model).items():
        names = leaf.get_metadata().get("out_sharding") or ()
        for name, size in zip(reversed(names), reversed(leaf.shape), strict=False):
            # a vocabulary that it does not divide is copied: that of bytes, 257, is prime
            if RULES[name] == "model" and name != "vocab":
                divides(mesh.model, "model", f"the {name!r} axis of {path}", size)


def check_pairs(experiment: Experiment, corpus: Texts) -> None:
    """Raise ValueError where a loss of pairs and what it is taken of do not fit together."""
    train, loss = experiment.train, type(experiment.train.loss).__name__
    if not train.steps:
        return
    if not isinstance(corpus, PairedTexts):
        if isinstance(train.loss, OfPairs):
            raise ValueError(
                f"loss: {loss} compares two answers to a prompt, which the data do not have; write "
                "Data(Pairs('pairs.jsonl')), say"
            )
        return
    if not isinstance(train.loss, OfPairs):
        return
    if train.rows % (2 * experiment.mesh.rows):
        raise ValueError(
            f"batch: {train.batch} rows, in {train.accumulate} x {experiment.mesh.rows} parts "
            "(accumulate; data x fsdp x expert), leave no whole number of pairs in each: a "
            f"multiple of {2 * train.accumulate * experiment.mesh.rows} does"
        )
    if needs_reference(train.loss) and experiment.init_from is None:
        raise ValueError(
            f"loss: {loss}(reference=True) compares with the parameters that training starts from: "
            "name the variant or the published model (init_from), or set reference=False"
        )
    if needs_reference(train.loss) and train.positions is not None:
        raise ValueError(
            f"positions: {spec.describe(train.positions)} draws positions anew in each step, and "
            f"the reference of {loss} is computed once: leave it at None"
        )
    for split in ["train"] if train.evaluate_every is None else ["train", "validation"]:
        corpus.rows(train.length, split)


def _shapes(model: LM) -> dict[str, tuple[int, ...]]:
    return {path: variable.shape for path, variable in parameters(model).items()}
