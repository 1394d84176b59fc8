"""How fast the main paths are on this machine: `make bench`. Each figure has a ratio of the same run beside it."""

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import precision
from checkpoints import checkpoints

from app import catalog
from app.catalog import cards
from app.catalog.gpus import load_cards
from app.catalog.instances import instances
from app.catalog.interconnects import interconnects
from app.catalog.nodes import node_shapes
from app.planning.architecture import Architecture, bare_count, from_config
from app.planning.ledger import Segment
from app.planning.memory import MemoryInputs, estimate, layout_sizes
from app.planning.peaks import segments_of, stage_formulas
from app.planning.pipeline import layer_counts, stages
from app.planning.recipe import Recipe, Rules, resolve
from app.planning.sizes import largest_number
from app.planning.specs import Parallelism, Training
from app.units import MIB

BUDGET_SECONDS = 0.001
"""CPU time that one detailed estimate may take."""

GRID_BUDGET_SECONDS = 0.25
"""CPU time that pricing the whole grid may take."""

GRID = {
    "micro_batch_size": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    "sequence_length": tuple(1024 * step for step in range(1, 11)),
    "data_parallel_size": (1, 2, 3, 4, 6, 8, 16, 32, 64, 128),
    "tensor_parallel_size": (1, 2, 4, 8),
    "pipeline_parallel_size": (1, 2, 4, 8, 16),
    "context_parallel_size": (1, 2, 4, 8, 16),
}
"""Axes of the grid: 100,000 layouts."""

PLANNED: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("dense, FSDP", "meta-llama/Llama-3.1-8B", {}, {"data_parallel_size": 8, "zero_stage": 3}),
    (
        "dense, tensor + sequence + pipeline",
        "meta-llama/Llama-3.1-8B",
        {"framework": "megatron"},
        {
            "data_parallel_size": 2,
            "zero_stage": 1,
            "tensor_parallel_size": 4,
            "sequence_parallel": True,
            "pipeline_parallel_size": 4,
        },
    ),
    (
        "dense, a pipeline of 16 stages",
        "meta-llama/Llama-3.1-70B",
        {"framework": "megatron", "gradient_accumulation_steps": 64},
        {"zero_stage": 1, "tensor_parallel_size": 8, "sequence_parallel": True, "pipeline_parallel_size": 16},
    ),
    (
        "dense, nanotron in 4 stages",
        "meta-llama/Llama-3.1-8B",
        {"framework": "nanotron", "gradient_accumulation_steps": 16},
        {
            "data_parallel_size": 2,
            "tensor_parallel_size": 4,
            "sequence_parallel": True,
            "pipeline_parallel_size": 4,
        },
    ),
    (
        "dense, nanotron in 16 stages",
        "meta-llama/Llama-3.1-70B",
        {"framework": "nanotron", "gradient_accumulation_steps": 64},
        {"tensor_parallel_size": 8, "sequence_parallel": True, "pipeline_parallel_size": 16},
    ),
    (
        "experts, 8 ways",
        "mistralai/Mixtral-8x7B-v0.1",
        {"framework": "megatron"},
        {"data_parallel_size": 8, "zero_stage": 1, "expert_parallel_size": 8},
    ),
    ("adapters", "meta-llama/Llama-3.1-8B", {"method": "lora"}, {}),
)
"""Requests whose estimate is timed: what they show, model, training, layout."""


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """CPU time of one call: the best of five rounds, so that a busy machine counts less."""
    work()
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeats):
            work()
        rounds.append((time.process_time() - start) / repeats)
    return min(rounds)


def say(what: str, seconds: float, beside: str, budget_seconds: float = math.inf) -> bool:
    """Prints one figure, and says whether it is within its budget."""
    over = f"; OVER THE BUDGET of {budget_seconds * 1e3:g} ms" if seconds > budget_seconds else ""
    print(f"{what:58s} {seconds * 1e3:10.3f} ms CPU   {beside}{over}")
    return not over


def planning() -> bool:
    """Estimates one by one and as a grid; whether all are within their budgets."""
    models, gpu = catalog.load(), catalog.load().gpu("h100-sxm-80gb")
    llama = models.model("meta-llama/Llama-3.1-8B").architecture
    rule = MemoryInputs(bare_count(llama.parameters), Training(), Parallelism(), gpu, None, "rule_of_thumb")
    of_rule = cpu_seconds(lambda: estimate(rule), 500)
    detailed, within = {}, []
    for what, model, training, layout in PLANNED:
        inputs = MemoryInputs(
            models.model(model).architecture,
            Training.model_validate(training),
            Parallelism.model_validate(layout),
            gpu,
            None,
            "detailed",
        )
        detailed[what] = cpu_seconds(lambda given=inputs: estimate(given), 100)
        beside = f"{detailed[what] / of_rule:.1f} × the rule of thumb"
        within.append(say(f"a detailed estimate: {what}", detailed[what], beside, BUDGET_SECONDS))

    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 8}
    counting = cpu_seconds(lambda: from_config(config).parameters, 500)
    dense = detailed["dense, tensor + sequence + pipeline"]
    say("one exact count from a config.json", counting, f"{counting / dense:.2f} × a detailed estimate")

    peaks = grid_of_layouts()
    check_grid(peaks)
    pricing = cpu_seconds(grid_of_layouts, 1)
    one = pricing / peaks.size
    beside = f"{dense / one:,.0f} × as many a second as one by one"
    within.append(say(f"a grid of {peaks.size:,} layouts", pricing, beside, GRID_BUDGET_SECONDS))
    return all(within)


def hardware_facts() -> None:
    """What reading the facts about hardware costs at the start, beside the models; and one look-up of a card."""
    folder = files("app.catalog")
    of_models = cpu_seconds(lambda: cards.models(folder / "models"), 1)
    reading: tuple[tuple[str, Callable[[], object]], ...] = (
        ("all GPUs and MIG profiles", lambda: load_cards(folder)),
        ("all links, when first asked for", interconnects.__wrapped__),
        ("all node shapes, when first asked for", node_shapes.__wrapped__),
        ("all instances, when first asked for", instances.__wrapped__),
    )
    for what, read in reading:
        seconds = cpu_seconds(read, 3)
        say(f"reading {what}", seconds, f"{seconds / of_models:.2f} × reading all models")
    known = catalog.load()
    found = cpu_seconds(lambda: known.cards_reported_as("NVIDIA GeForce RTX 3060", 12288 * MIB), 500)
    by_key = cpu_seconds(lambda: known.gpu("rtx-3060-12gb"), 500)
    say("a card by a driver's name and total", found, f"{found / by_key:.0f} × by its key")


def layout_at(point: dict[str, int]) -> tuple[Training, Parallelism]:
    """The request of one point of the grid."""
    training = Training(
        framework="megatron",
        micro_batch_size=point["micro_batch_size"],
        sequence_length=point["sequence_length"],
        gradient_accumulation_steps=32,
    )
    layout = Parallelism(
        zero_stage=1,
        sequence_parallel=point["tensor_parallel_size"] > 1,
        data_parallel_size=point["data_parallel_size"],
        tensor_parallel_size=point["tensor_parallel_size"],
        pipeline_parallel_size=point["pipeline_parallel_size"],
        context_parallel_size=point["context_parallel_size"],
    )
    return training, layout


def grid_of_layouts() -> np.ndarray:
    """Peaks of all layouts, indexed as the axes of `GRID` are, through the formulas of a single estimate.

    Which formulas hold depends on which parallelisms there are at all: those parts of the grid are priced one by one.
    """
    peaks = np.zeros([len(axis) for axis in GRID.values()], dtype=np.int64)
    for parts in itertools.product(*(_off_or_on(name, len(axis)) for name, axis in GRID.items())):
        peaks[parts] = _peaks({name: axis[part] for (name, axis), part in zip(GRID.items(), parts, strict=True)})
    return peaks


def _off_or_on(name: str, length: int) -> tuple[slice, ...]:
    """The parts of an axis under which different formulas hold: a parallelism of 1, and all others."""
    discrete = name in ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size")
    return (slice(0, 1), slice(1, length)) if discrete else (slice(0, length),)


def _peaks(axes: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Peaks of one part of the grid. Of a pipeline, those of the first or the last stage, one of which is highest."""
    model = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
    recipe = resolve(*layout_at({name: axis[0] for name, axis in axes.items()}), model)
    ledger, split = model.ledger(recipe.rules.kernels), recipe.split
    sizes = _common_sizes(axes, model, recipe)
    if split.whole:
        return _highest(recipe.rules, segments_of(recipe, model, None), sizes)
    blocks = tuple(segment.block for segment in ledger)
    pipelines = [
        stages(replace(split, stages=size), layer_counts(ledger, model.sizes), blocks)
        for size in axes["pipeline_parallel_size"]
    ]
    found = []
    for place in (0, -1):
        chosen = [pipeline[place] for pipeline in pipelines]
        assert len({stage.structure for stage in chosen}) == 1
        own = {
            name: _along("pipeline_parallel_size", [stage.sizes[name] for stage in chosen]) for name in chosen[0].sizes
        }
        found.append(_highest(recipe.rules, segments_of(recipe, model, chosen[0]), sizes | own))
    highest: np.ndarray = largest_number(*found)
    return highest


def _highest(rules: Rules, segments: tuple[Segment, ...], sizes: dict[str, Any]) -> np.ndarray:
    formulas = stage_formulas(rules, segments)
    sizes = sizes | {name: count.evaluate(sizes) for name, count in formulas.counts.items()}
    running = formulas.first.evaluate(sizes) + largest_number(*formulas.rises.evaluate(sizes))
    peaks: np.ndarray = largest_number(running, formulas.stepping.allocated.evaluate(sizes))
    return peaks


def _common_sizes(axes: dict[str, tuple[int, ...]], model: Architecture, recipe: Recipe) -> dict[str, Any]:
    """What all stages share, as arrays that are long only along the axes they depend on."""
    names = ("sequence_length", "data_parallel_size", "tensor_parallel_size", "context_parallel_size")
    points = [dict(zip(names, point, strict=True)) for point in itertools.product(*(axes[name] for name in names))]
    first = {name: axis[0] for name, axis in axes.items()}
    found = []
    for point in points:
        training, layout = layout_at(first | point)
        inputs = MemoryInputs(model, training, layout, None, None, "detailed")
        found.append(layout_sizes(inputs, replace(recipe, sequence_length=point["sequence_length"])))
    shape = [len(axes[name]) if name in names else 1 for name in GRID]
    sizes: dict[str, Any] = {}
    for name in found[0]:
        values = np.array([one[name] for one in found], dtype=np.int64).reshape(shape)
        for axis in range(values.ndim):
            start = values.take([0], axis)
            values = start if (values == start).all() else values
        sizes[name] = values
    return sizes | {"micro_batch_size": _along("micro_batch_size", axes["micro_batch_size"])}


def _along(name: str, values: Sequence[int]) -> np.ndarray:
    """An array along one axis of the grid."""
    return np.array(values, dtype=np.int64).reshape([-1 if axis == name else 1 for axis in GRID])


def check_grid(peaks: np.ndarray) -> None:
    """Some points of the grid are what a single estimate says, to the byte."""
    model = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
    for place in range(0, peaks.size, peaks.size // 97):
        index = np.unravel_index(place, peaks.shape)
        point = {name: axis[at] for (name, axis), at in zip(GRID.items(), index, strict=True)}
        answer = estimate(MemoryInputs(model, *layout_at(point), None, None, "detailed"))
        workspaces = sum(part.bytes for part in answer.components if part.name == "cublas_workspace")
        assert peaks[index] == max(stage.allocated_bytes for stage in answer.pipeline_stages) - workspaces, point


def every_reference_config() -> None:
    """The exact count of each config that the tests know: the first time in this process, and again."""
    files = sorted((Path(__file__).parent.parent / "tests" / "planning" / "reference_counts").glob("*.jsonl"))
    configs = [json.loads(line)["config"] for file in files for line in file.read_text().splitlines()]
    counts = []
    for config in configs:
        start = time.process_time()
        model = from_config(config)
        active = model.active_parameters
        first = time.process_time() - start
        again = cpu_seconds(lambda given=config: from_config(given).active_parameters, 3)
        counts.append((again, first, model.family.model_type, active == model.parameters))
    median = statistics.median(again for again, *_ in counts)
    first = statistics.median(first for _, first, *_ in counts)
    say(
        f"the median count of {len(counts):,} reference configs",
        median,
        f"the first time {first / median:.1f} × as long",
    )
    for what, chosen in (("dense", [one for one in counts if one[3]]), ("of all", counts)):
        most, _, model_type, _ = max(chosen)
        say(f"… the slowest {what}: {model_type}", most, f"{most / median:.0f} × the median")


def beside_accelerate() -> None:
    """One exact count beside accelerate's estimator, for the same config, if PEER_PYTHON names a Python that has it."""
    peer = os.environ.get("PEER_PYTHON")
    if peer is None:
        print("accelerate: set PEER_PYTHON to a Python with accelerate, transformers and torch to see it beside ours")
        return
    config = json.loads((Path(catalog.__file__).parent / "models" / "llama-3.1-8b.json").read_text())
    ours = cpu_seconds(lambda: from_config(config).parameters, 200)
    script = Path(__file__).with_name("accelerate_peer.py")
    ran = subprocess.run([peer, str(script)], input=json.dumps(config), capture_output=True, text=True, check=True)
    theirs = json.loads(ran.stdout.splitlines()[-1])
    say(
        "accelerate's estimator, Llama-3.1-8B, without imports",
        theirs["seconds"],
        f"{theirs['seconds'] / ours:,.0f} × ours",
    )
    say(
        "… and its imports",
        theirs["import_seconds"],
        f"same count: {theirs['parameters'] == from_config(config).parameters}",
    )


if __name__ == "__main__":
    every_reference_config()
    is_within_budget = planning()
    hardware_facts()
    precision.numbers(cpu_seconds, say)
    precision.files(say)
    beside_accelerate()
    checkpoints()
    sys.exit(0 if is_within_budget else "benchmarks: a figure is over its budget")
