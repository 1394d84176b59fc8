"""What each GPU of a training job holds at its peak, term by term.

The peak is the largest of all moments of a step: end of forward, each operation's backward, the optimizer step. The
answer's components describe that moment and sum to its total; `moments` names the highest one of each phase.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from app import __version__
from app.errors import ImpossibleLayout
from app.planning import overheads, rule_of_thumb, states
from app.planning.architecture import Architecture
from app.planning.ledger import Segment
from app.planning.recipe import Recipe, Rules, resolve
from app.planning.sizes import Size, total
from app.planning.sources import (
    AUTOCAST,
    AUTOGRAD,
    CHECKPOINT,
    CROSS_ENTROPY,
    FLASH_ATTENTION,
    FUSED_CROSS_ENTROPY,
    MEGATRON_ACTIVATIONS,
    Source,
)
from app.planning.specs import Estimator, Gpu, Parallelism, Training
from app.planning.term import Component, Group, Term
from app.planning.timeline import Moment, moments


@dataclass(frozen=True, slots=True)
class MemoryInputs:
    """Everything an estimate needs: names are looked up already."""

    architecture: Architecture
    training: Training
    parallelism: Parallelism
    gpu: Gpu | None
    gpus: int | None
    """GPUs the hardware has; None when the request does not limit them."""
    estimator: Estimator


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The model an answer is about."""

    name: str
    architecture: str
    parameters: int
    trainable_parameters: int
    active_parameters: int


@dataclass(frozen=True, slots=True)
class PerGpu:
    """Bytes of the heaviest GPU by group. `total_bytes` is the expected driver reading at the peak."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_states_bytes: int
    activations_bytes: int
    temporary_bytes: int
    framework_bytes: int
    total_bytes: int
    upper_bound_bytes: int


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """One pipeline stage's expected peak."""

    stage: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """The highest moment of one phase of the step, as the allocator counts it (without `framework_bytes`)."""

    phase: str
    moment: str
    allocated_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The answer. `components` sum to `per_gpu.total_bytes`; each formula, evaluated with `sizes`, gives its bytes."""

    model: ModelSummary
    per_gpu: PerGpu
    components: tuple[Component, ...]
    moments: tuple[PhasePeak, ...]
    pipeline_stages: tuple[PipelineStage, ...]
    cluster_total_bytes: int
    fits: bool | None
    headroom_bytes: int | None
    gpu: Gpu | None
    sizes: Mapping[str, int]
    estimator: Estimator
    engine_version: str
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def estimate(inputs: MemoryInputs) -> MemoryEstimate:
    """The memory of one job.

    Raises InvalidInput or ImpossibleLayout, with a JSON pointer into the request, for what cannot be meant or run.
    """
    ranks = inputs.parallelism.ranks
    if inputs.gpus is not None and ranks > inputs.gpus:
        raise ImpossibleLayout.at(
            "/parallelism",
            f"the layout needs {ranks} GPUs and the hardware has {inputs.gpus}; "
            "raise hardware.nodes or gpus_per_node, or lower data_parallel_size",
        )
    if inputs.estimator == "rule_of_thumb":
        return _by_rule_of_thumb(inputs)
    return _detailed(inputs)


def _by_rule_of_thumb(inputs: MemoryInputs) -> MemoryEstimate:
    if inputs.parallelism != Parallelism():
        raise ImpossibleLayout.at(
            "/parallelism", "the rule of thumb is for one GPU; use the detailed estimator for a split job"
        )
    precision = inputs.training.precision or "fp32"
    terms = rule_of_thumb.terms(precision if isinstance(precision, str) else "explicit formats")
    sizes = {"parameters": inputs.architecture.parameters}
    unused = sorted(inputs.training.model_fields_set - {"precision"})
    warnings = [
        "the rule of thumb knows no batch, sequence, recomputation or split; use the detailed estimator to decide"
    ]
    if unused:
        warnings.append(f"training fields the rule of thumb does not use: {', '.join(unused)}")
    components = tuple(Term(group, group, size, source).at(sizes) for group, size, source in terms)  # type: ignore[arg-type]
    return _answer(
        inputs,
        components,
        (),
        sizes,
        assumptions=(*inputs.architecture.assumptions, f"precision: {precision}"),
        warnings=(*inputs.architecture.warnings, *warnings),
    )


def _detailed(inputs: MemoryInputs) -> MemoryEstimate:
    recipe = resolve(inputs.training, inputs.parallelism, inputs.architecture, inputs.gpu)
    segments = inputs.architecture.ledger(recipe.rules.kernels)
    sizes = _sizes(inputs, recipe, segments)
    weighed = [(moment.allocated.evaluate(sizes), moment) for moment in step_moments(recipe.rules, segments)]
    sizes["allocated_bytes"], peak = max(weighed, key=lambda candidate: candidate[0])
    terms = [*peak.terms, *overheads.expected(inputs.gpu, inputs.parallelism.ranks)]
    components = tuple(component for component in (term.at(sizes) for term in terms) if component.bytes)
    return _answer(
        inputs,
        components,
        _phase_peaks(weighed),
        sizes,
        assumptions=(*inputs.architecture.assumptions, *recipe.assumptions, *_hardware_assumptions(inputs)),
        warnings=(
            *inputs.architecture.warnings,
            *recipe.warnings,
            *_family_warnings(inputs.architecture),
            *_hardware_warnings(inputs),
        ),
    )


def _sizes(inputs: MemoryInputs, recipe: Recipe, segments: tuple[Segment, ...]) -> dict[str, int]:
    weights = {weight.elements for segment in segments for weight in segment.weights}
    multiprocessors = inputs.gpu.streaming_multiprocessors if inputs.gpu is not None else None
    return {
        **inputs.architecture.sizes,
        "parameters": inputs.architecture.parameters,
        "trainable_parameters": inputs.architecture.trainable_parameters,
        "largest_weight": max(elements.evaluate(inputs.architecture.sizes) for elements in weights),
        "micro_batch_size": recipe.micro_batch_size,
        "sequence_length": recipe.sequence_length,
        "target_sequence_length": recipe.target_sequence_length,
        "data_parallel_size": inputs.parallelism.data_parallel_size,
        "streaming_multiprocessors": multiprocessors or overheads.ASSUMED_SMS,
    }


@dataclass(frozen=True, slots=True)
class StepMoment:
    """A moment of the whole step: everything the allocator has given out, term by term."""

    phase: str
    label: str
    terms: tuple[Term, ...]
    allocated: Size


@lru_cache(maxsize=128)
def step_moments(rules: Rules, segments: tuple[Segment, ...]) -> tuple[StepMoment, ...]:
    """The moments that can be the peak of a step under these rules, as formulas: the sizes come later."""
    kept = states.kept(rules, segments)
    found = []
    for moment in moments(segments, rules.recompute):
        phase = "forward" if moment.label == "end of forward" else f"backward of the {moment.segment.name}"
        held = [
            *_activations(moment, rules),
            *states.gradients(rules, moment),
            *states.in_passing(rules, segments, moment.segment),
            Term("gradients_of_activations", "temporary", moment.transient, _transient_source(moment, rules)),
        ]
        found.append((phase, moment.label, (*kept, *held)))
    stepping = (*kept, *states.step(rules), *states.in_passing(rules, segments, None))
    found.append(("optimizer step", "optimizer.step", stepping))
    return tuple(StepMoment(phase, label, terms, total(term.bytes for term in terms)) for phase, label, terms in found)


def _activations(moment: Moment, rules: Rules) -> list[Term]:
    terms = [
        Term(f"activations.{name}", "activations", amount, _activation_source(name, rules))
        for name, amount in moment.saved.items()
    ]
    terms.append(Term("activations.autocast_weights", "activations", moment.weight_casts, AUTOCAST))
    return terms


def _activation_source(component: str, rules: Rules) -> Source:
    if component == "lm_head":
        return FUSED_CROSS_ENTROPY if rules.kernels.fused_cross_entropy else CROSS_ENTROPY
    if rules.recompute == "full":
        return CHECKPOINT
    if rules.kernels.fused:
        return MEGATRON_ACTIVATIONS
    return FLASH_ATTENTION if component == "attention" and rules.kernels.attention == "flash" else AUTOGRAD


def _transient_source(moment: Moment, rules: Rules) -> Source:
    if moment.segment.block or rules.kernels.fused_cross_entropy:
        return AUTOGRAD
    return CROSS_ENTROPY


def _phase_peaks(weighed: list[tuple[int, StepMoment]]) -> tuple[PhasePeak, ...]:
    peaks: dict[str, PhasePeak] = {}
    for allocated_bytes, moment in weighed:
        if moment.phase not in peaks or allocated_bytes > peaks[moment.phase].allocated_bytes:
            peaks[moment.phase] = PhasePeak(moment.phase, moment.label, allocated_bytes)
    return tuple(peaks.values())


def _hardware_assumptions(inputs: MemoryInputs) -> tuple[str, ...]:
    lines = []
    if inputs.gpu is None:
        lines.append("no GPU given: CUDA context and libraries as on an H100")
    elif inputs.gpus is None:
        lines.append(f"hardware: as many GPUs as the layout needs ({inputs.parallelism.ranks})")
    return tuple(lines)


def _family_warnings(architecture: Architecture) -> tuple[str, ...]:
    model_type = architecture.family.model_type
    if model_type in overheads.VERIFIED_FAMILIES:
        return ()
    warning = (
        f"activations of {model_type} models are not verified by traced training steps: weights, gradients and "
        "states are exact, the rest may be half of what is needed, which the upper bound allows for"
    )
    return (warning,)


def _hardware_warnings(inputs: MemoryInputs) -> tuple[str, ...]:
    ranks = inputs.parallelism.ranks
    if inputs.gpus is not None and ranks < inputs.gpus:
        return (f"the layout uses {ranks} of {inputs.gpus} GPUs; raise data_parallel_size to use the rest",)
    return ()


def _answer(
    inputs: MemoryInputs,
    components: tuple[Component, ...],
    phases: tuple[PhasePeak, ...],
    sizes: Mapping[str, int],
    *,
    assumptions: tuple[str, ...],
    warnings: tuple[str, ...],
) -> MemoryEstimate:
    by_group: dict[Group, int] = dict.fromkeys(
        ("weights", "gradients", "optimizer_states", "activations", "temporary", "framework"), 0
    )
    for component in components:
        by_group[component.group] += component.bytes
    total_bytes = sum(by_group.values())
    bound = total_bytes
    if inputs.estimator == "detailed":
        bound = overheads.upper_bound_bytes(
            allocated_bytes=total_bytes - by_group["framework"],
            moving_bytes=by_group["activations"] + by_group["temporary"],
            total_bytes=total_bytes,
            model_type=inputs.architecture.family.model_type,
        )
    architecture, gpu = inputs.architecture, inputs.gpu
    return MemoryEstimate(
        model=ModelSummary(
            name=architecture.name,
            architecture=architecture.family.class_name,
            parameters=architecture.parameters,
            trainable_parameters=architecture.trainable_parameters,
            active_parameters=architecture.active_parameters,
        ),
        per_gpu=PerGpu(
            **{f"{group}_bytes": amount for group, amount in by_group.items()},
            total_bytes=total_bytes,
            upper_bound_bytes=bound,
        ),
        components=components,
        moments=phases,
        pipeline_stages=(PipelineStage(0, total_bytes),),
        cluster_total_bytes=total_bytes * inputs.parallelism.ranks,
        fits=None if gpu is None else bound <= gpu.usable_bytes,
        headroom_bytes=None if gpu is None else gpu.usable_bytes - bound,
        gpu=gpu,
        sizes=sizes,
        estimator=inputs.estimator,
        engine_version=__version__,
        assumptions=assumptions,
        warnings=warnings,
    )
