"""What of a request lies outside what was ever measured or traced, and what the upper bound allows for it.

A request is taken apart into features: each field that decides which memory a step holds, with its value and the
framework whose code does it. Published runs and traced steps are taken apart the same way (`app.accuracy.evidence`), so
that `app.planning.covered` knows how many of them hold each feature and how well the bound held there.

Not a feature is what is mere arithmetic (sizes, `layers_per_stage`), what the caller allows for himself
(`expert_load_percent`) and what only sets a counted buffer (`deterministic`, `reduce_bucket_size`, `stage3_…`), nor
Liger's norms and products or the masks of packed sequences, which have traced steps of their own. Adam is AdamW: both
keep the same and run the same kernels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from app.planning import overheads, states
from app.planning.architecture import Architecture
from app.planning.covered import COVERED
from app.planning.peaks import StagePeak
from app.planning.recipe import Recipe
from app.planning.sizes import ceil_div_numbers
from app.planning.specs import Gpu, Parallelism, Training
from app.units import MIB

Change = Literal["activations", "step", "states", "gpu"]
"""What a feature decides: what waits for backward or passes by; what the optimizer step holds in passing; what of
weights, gradients and states a rank keeps; or what libraries take on the GPU.
"""

CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        "attention": "activations",
        "compile": "activations",
        "context_parallel_size": "activations",
        "cuda_graphs": "activations",
        "expert_parallel_size": "activations",
        "expert_tensor_parallel_size": "activations",
        "family": "activations",
        "frozen_layers": "activations",
        "fused_cross_entropy": "activations",
        "in_place_cross_entropy": "activations",
        "lora.adapter_format": "activations",
        "lora.base_format": "activations",
        "lora.modules_to_save": "activations",
        "lora.prepared": "activations",
        "method": "activations",
        "num_experts": "activations",
        "offload_checkpoints": "activations",
        "pipeline_schedule": "activations",
        "precision": "activations",
        "precision.compute": "activations",
        "recompute": "activations",
        "recompute_layers": "activations",
        "recompute_modules": "activations",
        "sequence_parallel": "activations",
        "tensor_parallel_size": "activations",
        "transformers_version": "activations",
        "use_reentrant": "activations",
        "optimizer": "step",
        "optimizer_implementation": "step",
        "optimizer_in_backward": "step",
        "gradient_accumulation_steps": "states",
        "offload": "states",
        "precision.gradients": "states",
        "precision.master_weights": "states",
        "precision.optimizer_states": "states",
        "precision.parameters": "states",
        "precision.second_moments": "states",
        "sharding_group_size": "states",
        "zero_hpz_partition_size": "states",
        "zero_stage": "states",
        "architecture": "gpu",
    }
)
"""Every field that a feature can name, and what it decides."""

LEAST_RUNS = 3
"""Runs or traced steps from which on a feature counts as covered: fewer have no median."""

LEAST_HELD_PERCENT = 80
"""Runs, in percent, that a feature's upper bound must have held for; below, the bound allows for what they took."""

LEAST_HELD_OPEN_PERCENT = 50
"""The same where fewer than three of the runs are fully stated: a miss may lie in what they leave open."""

ANY = "any"
"""Framework of features that do not depend on one: GPUs."""


class Evidence(NamedTuple):
    """What runs and traced steps say about one feature."""

    runs: int
    """Published configurations with a reading of the peak, of sources graded A or B."""
    traced: int
    """Training steps traced operator by operator."""
    judged: int
    """Of both, those by which the bound is judged: the fully stated ones, or all where these are fewer than three."""
    held: int
    """Of these, those whose readings the bound covers, were every feature covered."""
    short_percent: int
    """What the bound lacked for 95 of 100 of the judged ones, in percent of the expected allocation; 0 where it held
    often enough, or where another feature of the same runs held worse.
    """

    @property
    def is_covered(self) -> bool:
        """Whether there is enough of it to say anything."""
        return self.runs + self.traced >= LEAST_RUNS


Covered = Mapping[str, Evidence]

SHIPPED: Covered = MappingProxyType({feature: Evidence(*counts) for feature, counts in COVERED.items()})
"""What is covered in this version, as `make accuracy` found it."""


@dataclass(frozen=True, slots=True)
class Doubts:
    """The features of a request that are not covered, by what they decide, and those whose bound held too seldom."""

    uncovered: Mapping[Change, tuple[str, ...]]
    short: tuple[tuple[str, Evidence], ...]
    unverified_family: str | None
    """The model type, where no traced step verifies its activations."""


NONE = Doubts(MappingProxyType({}), (), None)


def features(
    training: Training, parallelism: Parallelism, architecture: Architecture, recipe: Recipe, gpu: Gpu | None
) -> list[str]:
    """What decides the memory of a request, as `framework: field value`: whose code it is, which for models under
    DeepSpeed is that of transformers.
    """
    rules, kernels, formats = recipe.rules, recipe.rules.kernels, recipe.rules.precision
    engine = f"{rules.framework}: "
    code = "transformers: " if rules.framework == "deepspeed" else engine
    optimizer = "adamw" if rules.optimizer == "adam" else rules.optimizer
    found = [
        f"{code}family {architecture.family.family}",
        f"{code}attention {kernels.attention}",
        f"{code}recompute {training.recompute}",
        f"{code}method {training.method}",
        f"{code}precision.compute {formats.compute}",
        f"{engine}optimizer {optimizer}",
    ]
    if rules.framework in ("transformers", "torchtitan"):
        found.append(f"{engine}optimizer_implementation {rules.optimizer_implementation}")
    if gpu is not None:
        found.append(f"{ANY}: architecture {gpu.architecture}")
    if training.method == "full":
        found += (
            f"{engine}precision.parameters {formats.parameters}",
            f"{engine}precision.gradients {formats.gradients}",
            f"{engine}precision.master_weights {formats.master_weights or 'none'}",
            f"{engine}precision.optimizer_states {formats.optimizer_states}",
        )
        if formats.second_moments not in (None, formats.optimizer_states):
            found.append(f"{engine}precision.second_moments {formats.second_moments}")
    else:
        found += _of_adapters(training, recipe, code)
    if parallelism.data_parallel_size * parallelism.context_parallel_size > 1:
        found.append(f"{engine}zero_stage {rules.zero_stage}")
    if rules.piped:
        found.append(f"{engine}pipeline_schedule {recipe.split.schedule}")
    if parallelism.offload != "none":
        found.append(f"{engine}offload {parallelism.offload}")
    if training.precision == "fp8-mixed":
        found.append(f"{engine}precision fp8-mixed")
    found += (f"{engine}recompute_modules {module}" for module in training.recompute_modules or ())
    found += _switched_on(training, parallelism, architecture, recipe, engine=engine, code=code)
    return found


def _switched_on(
    training: Training, parallelism: Parallelism, architecture: Architecture, recipe: Recipe, *, engine: str, code: str
) -> Iterable[str]:
    """The fields of which only one value is a feature, each with whose code does it."""
    rules, kernels = recipe.rules, recipe.rules.kernels
    expert_tensor = parallelism.expert_tensor_parallel_size
    for holds, owner, field in (
        (rules.hybrid, engine, "sharding_group_size"),
        (rules.secondary, engine, "zero_hpz_partition_size"),
        (rules.accumulated, engine, "gradient_accumulation_steps"),
        (kernels.tensor_parallel, engine, "tensor_parallel_size"),
        (kernels.sequence_parallel, engine, "sequence_parallel"),
        (kernels.context_parallel, engine, "context_parallel_size"),
        (parallelism.expert_parallel_size > 1, engine, "expert_parallel_size"),
        (
            expert_tensor is not None and expert_tensor != parallelism.tensor_parallel_size,
            engine,
            "expert_tensor_parallel_size",
        ),
        ("num_experts" in architecture.sizes, code, "num_experts"),
        (training.recompute_layers is not None, engine, "recompute_layers"),
        (training.use_reentrant, engine, "use_reentrant"),
        (training.offload_checkpoints, engine, "offload_checkpoints"),
        (training.optimizer_in_backward, engine, "optimizer_in_backward"),
        (training.cuda_graphs, engine, "cuda_graphs"),
        (training.frozen_layers > 0, code, "frozen_layers"),
        (training.compile, code, "compile"),
        (kernels.fused_cross_entropy, code, "fused_cross_entropy"),
        (kernels.in_place_loss, code, "in_place_cross_entropy"),
        (kernels.shifted_loss != "never", code, "transformers_version before 4.49"),
    ):
        if holds:
            yield owner + field


def _of_adapters(training: Training, recipe: Recipe, code: str) -> Iterable[str]:
    formats, lora = recipe.rules.precision, training.lora
    base = recipe.rules.kernels.base_format or formats.parameters
    if base != formats.compute:
        yield f"{code}lora.base_format {base}"
    yield f"{code}lora.adapter_format {formats.gradients}"
    if lora is not None and lora.prepared:
        yield f"{code}lora.prepared"
    if lora is not None and lora.modules_to_save:
        yield f"{code}lora.modules_to_save"


def field_of(feature: str) -> str:
    """The field of the request that a feature names."""
    return feature.partition(": ")[2].partition(" ")[0]


def doubts(found: Iterable[str], covered: Covered, model_type: str) -> Doubts:
    """Which of a request's features are not covered, or badly."""
    uncovered: dict[Change, tuple[str, ...]] = {}
    short = []
    for feature in found:
        evidence = covered.get(feature)
        if evidence is None or not evidence.is_covered:
            change = CHANGES[field_of(feature)]
            uncovered[change] = (*uncovered.get(change, ()), feature)
        elif evidence.short_percent:
            short.append((feature, evidence))
    unverified = None if model_type in overheads.VERIFIED_FAMILIES else model_type
    return Doubts(uncovered, tuple(short), unverified) if uncovered or short or unverified else NONE


def allowance_bytes(found: Doubts, peak: StagePeak) -> int:
    """What the upper bound of a stage allows for these doubts: once for each thing that features decide, however many
    of them do, since whole jobs with all their features gave the spread that the percentages are taken from.
    """
    if found is NONE:
        return 0
    sizes, allocated_bytes = peak.sizes, peak.sizes["allocated_bytes"]
    amount = allocated_bytes * max((evidence.short_percent for _, evidence in found.short), default=0) // 100
    if "activations" in found.uncovered or found.unverified_family is not None:
        heaviest = peak.formulas.running[peak.profile.highest]
        amount += heaviest.moving.evaluate(sizes) * overheads.UNCOVERED_MOVING_PERCENT // 100
    if "states" in found.uncovered:
        held_bytes = allocated_bytes - peak.moment.moving.evaluate(sizes)
        passing_bytes = max(held_bytes, _gradient_bytes(peak))  # what waits on the host passes through the GPU
        amount += passing_bytes * overheads.UNCOVERED_STATES_PERCENT // 100
    if "step" in found.uncovered:
        amount += _gradient_bytes(peak)
    if "gpu" in found.uncovered:
        amount += overheads.UNCOVERED_GPU_BYTES
    return amount


_TRAINED = (
    (str(states.TRAINABLE), str(states.SHARDS)),
    (str(states.TRAINABLE_EXPERTS), str(states.EXPERT_SHARDS)),
)


def _gradient_bytes(peak: StagePeak) -> int:
    """Gradients of all that a rank trains, or of its shard where gradients are sharded."""
    sizes, rules = peak.sizes, peak.formulas.rules
    elements = sum(
        ceil_div_numbers(sizes[count], sizes[shards] if rules.zero_stage >= 2 else 1) for count, shards in _TRAINED
    )
    return int(elements) * states.element_bytes(rules.precision.gradients)


_ALLOWS: Mapping[Change, str] = MappingProxyType(
    {
        "activations": (
            f"activations and temporary memory may be {overheads.UNCOVERED_MOVING_PERCENT} % more than expected"
        ),
        "step": "the optimizer step may need another copy of the gradients",
        "states": (
            f"weights, gradients and states with their buffers may be {overheads.UNCOVERED_STATES_PERCENT} % more than "
            "expected"
        ),
        "gpu": f"context and libraries may take {overheads.UNCOVERED_GPU_BYTES // MIB} MiB more than expected",
    }
)


def warnings(found: Doubts) -> tuple[str, ...]:
    """A sentence for each doubt: what it is about, and what the upper bound allows for."""
    lines = [
        f"fewer than {LEAST_RUNS} published runs or traced steps cover {_words(names)}: {_ALLOWS[change]}, which the "
        "upper bound allows for"
        for change, names in found.uncovered.items()
    ]
    lines += [
        f"published runs of {_words((feature,))} took more than expected: the usual upper bound covers "
        f"{its.held} of {its.judged}; here it is wider by {its.short_percent} % of the expected allocation"
        for feature, its in found.short
    ]
    if found.unverified_family is not None:
        lines.append(
            f"activations of {found.unverified_family} models are not verified by traced training steps: weights, "
            f"gradients and states are exact, {_ALLOWS['activations']}, which the upper bound allows for"
        )
    return tuple(lines)


def _words(names: Iterable[str]) -> str:
    """Features for people: the fields, and whose code it is."""
    by_owner: dict[str, list[str]] = {}
    for feature in names:
        owner, _, rest = feature.partition(": ")
        by_owner.setdefault(owner, []).append(rest)
    parts = []
    for owner, fields in by_owner.items():
        listed = " and ".join(filter(None, (", ".join(fields[:-1]), fields[-1])))
        parts.append(f"GPUs of {listed}" if owner == ANY else f"{listed} with {owner}")
    return " and ".join(parts)
