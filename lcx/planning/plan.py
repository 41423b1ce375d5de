"""`lcx plan`: what training and evaluation would take on devices that are not here.

XLA compiles both for as many CPU devices as are asked about (`lcx.planning.compiled`), and
tells the bytes of each and what it sends to others; operations are counted by formula (`lcx.cost`).
The number of devices is fixed when JAX starts, so that each variant is planned in a process of its
own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax.numpy as jnp
from rich import box
from rich.console import Console
from rich.table import Table

from lcx.cost import state_bytes, training_flops, uncounted, uncounted_note
from lcx.experiment import Experiment, choose
from lcx.model import LM, count_parameters
from lcx.planning.chips import CHIPS, Chip, chip_named
from lcx.planning.compiled import Measured, fit, measure
from lcx.planning.reading import Reading, measure_reading
from lcx.training.kept import open_experiments
from lcx.validation import check_cuts
from lcx.variants import teacher_model
from lcx.wording import short_bytes, short_length, short_number, side_by_side


@dataclass(frozen=True)
class Step:
    """What one step takes, of each device; bytes, unless it says otherwise."""

    length: int
    """T, tokens a row."""
    batch: int
    """Rows a step."""
    parameters: int
    optimizer: int
    activations: int
    """What grows with the length, at this length."""
    other: int
    """The rest: gradients, copies of weights in other dtypes."""
    memory: int
    """All together, at the peak."""
    flops: float | None
    """With those of the forward pass that remat repeats; None where a mixer does not tell."""
    uncounted: list[str]
    """The mixers that do not tell, by class."""
    traffic: int
    """Bytes from and to HBM, at least."""
    sent: dict[str, float]
    """By the kind of collective."""
    unknown: int
    """Collectives that may be sent more often than is counted (`lcx.planning.hlo`)."""
    seconds: dict[str, float | None]
    """The shortest time of each term at the chip's rates: compute, memory, interconnect."""
    bottleneck: str
    """The longest of these."""
    longest: int
    """The longest T that was compiled and fits the chip; 0: none."""


@dataclass(frozen=True)
class Plan:
    """What a variant takes."""

    variant: str
    chip: str
    devices: int
    step: Step | None
    """Of training; None where there is none, `train.steps` being 0."""
    reading: Reading
    """Of evaluation."""
    decoding_state: int
    """Bytes of one text of `train.length` tokens, whole."""


def plan(name: str, experiment: Experiment, chip_name: str, teacher: LM | None = None) -> Plan:
    """Plan a variant on the devices of its mesh. Raises ValueError as `measure` does."""
    chip, settings = chip_named(chip_name), experiment.train
    return Plan(
        variant=name,
        chip=next(known for known, one in CHIPS.items() if one is chip),
        devices=experiment.mesh.devices,
        step=plan_step(experiment, chip, teacher) if settings.steps else None,
        reading=measure_reading(experiment),
        decoding_state=state_bytes(experiment.model, settings.length),
    )


def plan_step(experiment: Experiment, chip: Chip, teacher: LM | None = None) -> Step:
    """Plan a training step. Raises ValueError as `measure` does."""
    model, settings = experiment.model, experiment.train
    devices, remat = experiment.mesh.devices, model.remat
    steps: dict[int, Measured] = {}

    def memory(length: int) -> int:
        longer = replace(settings, length=length, positions=None)
        steps[length] = measure(replace(experiment, train=longer), teacher)
        return steps[length].memory

    fitted = fit(settings.length, 2 * experiment.mesh.seq, chip.memory, memory)
    here = steps[settings.length]
    fixed = here.parameters + here.optimizer
    activations = min(round(fitted.slope * settings.length), here.memory - fixed)

    own = training_flops(model, settings.length, experiment.tune)
    flops = training_flops(model, settings.length, experiment.tune, teacher)
    if own is not None and flops is not None:
        lookup = 0 if model.tied else model.vocabulary * model.width
        products = 2 * (count_parameters(model) - lookup)
        again = {"none": 0.0, "block": own / 3, "dots": own / 3 - products}
        flops = (flops + again[remat]) * settings.batch * settings.length / devices
    # Every buffer is filled once and read once; and each pass reads the weights that it needs.
    passes = 2 if remat == "none" else 3
    itemsize = jnp.dtype(model.policy.compute).itemsize
    read = passes * count_parameters(model) + (count_parameters(teacher) if teacher else 0)
    weights = itemsize * read // experiment.mesh.model
    traffic = 2 * here.memory + weights
    seconds = {
        "compute": None if flops is None else flops / chip.flops,
        "memory": traffic / chip.bandwidth,
        "interconnect": sum(here.sent.wire.values()) / chip.wire(devices),
    }
    return Step(
        length=settings.length,
        batch=settings.batch,
        parameters=here.parameters,
        optimizer=here.optimizer,
        activations=activations,
        other=here.memory - fixed - activations,
        memory=here.memory,
        flops=flops,
        uncounted=uncounted(*filter(None, (model, teacher))),
        traffic=traffic,
        sent=here.sent.wire,
        unknown=here.sent.unknown,
        seconds=seconds,
        bottleneck=max(seconds, key=lambda term: seconds[term] or 0.0),
        longest=fitted.longest,
    )


def check_devices(experiment: Experiment, devices: int) -> None:
    """Raise ValueError where the mesh is not one of so many devices, or does not fit the model."""
    mesh = experiment.mesh
    mesh.check(devices)
    if mesh.devices < devices:
        data = mesh.data_for(devices)
        fix = "" if data is None else f"--set mesh.data={data} or "
        raise ValueError(
            f"the mesh takes {mesh.devices} of {devices} devices; "
            f"{fix}--devices {mesh.devices} would do"
        )
    check_cuts(experiment)


def elsewhere(argv: list[str], devices: int) -> Plan:
    """Plan one variant in a process whose JAX has so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "lcx.planning.plan", *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{argv[1]}: {done.stderr.strip().splitlines()[-1]}")
    made = json.loads(done.stdout.splitlines()[-1])
    step = None if made["step"] is None else Step(**made["step"])
    return Plan(**made | {"step": step, "reading": Reading(**made["reading"])})


def main(file: str, name: str, chip: str, *assignments: str) -> None:
    """The other process: the plan of one variant as a line of JSON."""
    experiments, _ = choose(open_experiments(Path(file)).experiments, name, assignments)
    teacher = teacher_model(name, experiments)
    print(json.dumps(asdict(plan(name, experiments[name], chip, teacher))))


NOTES = (
    "Of each device, as XLA's compiler for CPUs lays it out: an estimate of what another compiler "
    "would make of the same program. Bytes are in powers of 1024; a row fits if it takes no more "
    "than the chip's whole memory. FLOPs follow the mixers' formulas, with the forward pass that "
    "remat repeats. Traffic counts each buffer once in and once out, and the weights once a pass: "
    "the least there can be. Seconds are at the chip's published rates, each term by itself; the "
    "longest is the bottleneck."
)


def print_plans(plans: list[Plan], console: Console) -> None:
    """A column for each variant, for a terminal; below one another where it has no room for all."""
    widths = [max(len(made.variant), 6) + 1 for made in plans]
    for together in side_by_side(widths, console.width - len(DECODING) - 1):
        console.print(_table(plans[together]))
    console.print(NOTES, style="dim", highlight=False)
    steps = [made.step for made in plans]
    if note := uncounted_note(name for step in steps if step for name in step.uncounted):
        console.print(note, highlight=False)
    for made in plans:
        if made.step and made.step.unknown:
            console.print(
                f"{made.variant}: {made.step.unknown} collectives stand in loops of unknown "
                "length, and are counted once",
                highlight=False,
            )


DECODING = "state of decoding a text of train.length"
"""The longest label."""


def _table(plans: list[Plan]) -> Table:
    chip, rates = plans[0].chip, CHIPS[plans[0].chip]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"{plans[0].devices} x {chip}", no_wrap=True)
    for made in plans:
        table.add_column(made.variant, justify="right", overflow="fold")
    steps = [made.step for made in plans]
    if any(steps):
        for label, show in _step_rows(chip, rates, [step for step in steps if step]).items():
            table.add_row(label, *("–" if step is None else show(step) for step in steps))
        table.add_section()
    room = short_bytes(rates.memory)
    rows: dict[str, Callable[[Plan], str]] = {
        "evaluation: tokens of a text": lambda p: short_length(p.reading.length),
        "texts side by side": lambda p: str(p.reading.rows),
        "parameters": lambda p: short_bytes(p.reading.parameters),
        "state": lambda p: short_bytes(p.reading.state),
        f"memory, of {room}": lambda p: short_bytes(p.reading.memory),
        DECODING: lambda p: short_bytes(p.decoding_state),
    }
    for label, of in rows.items():
        table.add_row(label, *map(of, plans))
    return table


def _step_rows(chip: str, rates: Chip, steps: list[Step]) -> dict[str, Callable[[Step], str]]:
    ridge = rates.flops / rates.bandwidth
    kinds = sorted({kind for step in steps for kind in step.sent})
    return {
        "training: tokens a row": lambda s: short_length(s.length),
        "rows a step": lambda s: str(s.batch),
        "parameters": lambda s: short_bytes(s.parameters),
        "optimizer": lambda s: short_bytes(s.optimizer),
        "activations": lambda s: short_bytes(s.activations),
        "gradients and copies": lambda s: short_bytes(s.other),
        f"memory, of {short_bytes(rates.memory)}": lambda s: short_bytes(s.memory),
        "longest row that fits": lambda s: f"{s.longest:,}" if s.longest else "none",
        "TFLOP": lambda s: "–" if s.flops is None else short_number(s.flops / 1e12),
        "traffic to memory": lambda s: short_bytes(s.traffic),
        f"FLOP per byte, at most ({chip}: {ridge:.0f})": lambda s: (
            "–" if s.flops is None else short_number(s.flops / s.traffic)
        ),
        **{f"sent: {kind}": lambda s, k=kind: short_bytes(s.sent.get(k, 0)) for kind in kinds},
        **{
            f"{term}, seconds": lambda s, t=term: short_number(s.seconds[t])
            for term in steps[0].seconds
        },
        "bottleneck": lambda s: s.bottleneck,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
