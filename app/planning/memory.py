"""The answer to a request for memory: what the heaviest GPU holds at its peak, term by term, and what the others do.

`components` describe the peak and sum to its total; `moments` names the highest moment of each phase.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from app import __version__
from app.errors import ImpossibleLayout
from app.planning import coverage, deepspeed, megatron, overheads, rule_of_thumb, states
from app.planning.architecture import Architecture
from app.planning.chunks import StageChunk, chunks_of
from app.planning.coverage import SHIPPED, Covered, Doubts
from app.planning.ledger import is_tensor_split, per_rank, shard
from app.planning.lora import adapters
from app.planning.peaks import StagePeak, segments_of, stage_peaks
from app.planning.pipeline import Stage, layer_counts, stages
from app.planning.recipe import Recipe, Rules, resolve
from app.planning.sizes import ceil_div_numbers
from app.planning.specs import Estimator, Gpu, Lora, Parallelism, Training
from app.planning.term import Component, Group, Term

MEGATRON_VOCABULARY_MULTIPLE = 128
"""Megatron pads the vocabulary to a multiple of this times the tensor-parallel ranks."""


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
    gpus_per_node: int | None = None
    """Ranks that share one node's host memory; None when the request does not say."""
    covered: Covered | None = field(default_factory=lambda: SHIPPED, repr=False)
    """What runs and traced steps cover, which decides how far the upper bound reaches; None to take all for covered."""


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
    """Bytes of the heaviest GPU by group. `total_bytes` is the expected driver reading at the peak, `upper_bound_bytes`
    the highest that is to be expected: calibrated on published runs, wider where none covers a feature of the request.
    """

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
    """One pipeline stage's expected peak as the driver counts it, as `torch.cuda.max_memory_reserved` and
    `max_memory_allocated` do, and what `memory_allocated` reads between steps. The allocator's counts include cuBLAS
    workspaces. `chunks` says what of its activations belongs to which of its layers; empty where the pipeline has one
    stage.
    """

    stage: int
    total_bytes: int
    reserved_bytes: int
    allocated_bytes: int
    between_steps_bytes: int
    chunks: tuple[StageChunk, ...] = ()


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What offloading and paged optimizers keep in host memory: of one rank, and of a node where its GPUs are known.

    A paged optimizer's states may be moved there when the GPU runs out; everything else is there all the time.
    """

    per_rank_bytes: int
    per_node_bytes: int | None
    components: tuple[Component, ...]


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """The highest moment of one phase of the step, as the allocator counts it (without `framework_bytes`).

    The phase `first step` is there where the first step of a job needs less than those after it.
    """

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
    host: HostMemory
    cluster_total_bytes: int
    fits: bool | None
    headroom_bytes: int | None
    gpu: Gpu | None
    sizes: Mapping[str, int]
    estimator: Estimator
    engine_version: str
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Details:
    """What an answer shows of the heaviest stage."""

    components: tuple[Component, ...]
    phases: tuple[PhasePeak, ...]
    sizes: Mapping[str, int]
    host: tuple[Component, ...]


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
    total_bytes = sum(component.bytes for component in components)
    return _answer(
        inputs,
        _Details(components, (), sizes, ()),
        (PipelineStage(0, total_bytes, total_bytes, total_bytes, total_bytes),),
        bound=total_bytes,
        assumptions=(*inputs.architecture.assumptions, f"precision: {precision}"),
        warnings=(*inputs.architecture.warnings, *warnings),
    )


def _detailed(inputs: MemoryInputs) -> MemoryEstimate:
    recipe = resolve(inputs.training, inputs.parallelism, inputs.architecture, inputs.gpu)
    common = layout_sizes(inputs, recipe)
    found = list(_stage_peaks(inputs, recipe, common))
    heaviest = max(found, key=lambda stage: stage.total_bytes)
    doubts = _doubts(inputs, recipe)
    bound = _upper_bound(inputs, recipe, heaviest, doubts)
    for rules in _unstated(recipe.rules):
        other = replace(recipe, rules=rules)
        bound = max(bound, *(_upper_bound(inputs, other, peak, doubts) for peak in _stage_peaks(inputs, other, common)))
    return _answer(
        inputs,
        _Details(heaviest.components(), _phase_peaks(heaviest), heaviest.sizes, heaviest.host()),
        tuple(
            PipelineStage(
                index,
                peak.total_bytes,
                peak.reserved_bytes,
                peak.allocated_bytes,
                peak.between_steps_bytes,
                chunks_of(stage, peak.formulas.segments, peak.sizes) if recipe.rules.piped else (),
            )
            for index, (stage, peak) in enumerate(zip(_stages(inputs, recipe, common), found, strict=True))
        ),
        bound=bound,
        assumptions=(*inputs.architecture.assumptions, *recipe.assumptions, *_hardware_assumptions(inputs)),
        warnings=(
            *inputs.architecture.warnings,
            *recipe.warnings,
            *coverage.warnings(doubts),
            *_hardware_warnings(inputs),
        ),
    )


def _unstated(rules: Rules) -> tuple[Rules, ...]:
    """Other rules that the same request may run under, which the upper bound allows for: nanotron keeps gathered inputs
    where `tp_recompute_allgather` is off.
    """
    if rules.framework == "nanotron" and rules.kernels.sequence_parallel:
        return (replace(rules, kernels=replace(rules.kernels, gathers_again=False)),)
    return ()


def _doubts(inputs: MemoryInputs, recipe: Recipe) -> Doubts:
    training, layout, architecture = inputs.training, inputs.parallelism, inputs.architecture
    covered = inputs.covered
    found = [] if covered is None else coverage.features(training, layout, architecture, recipe, inputs.gpu)
    return coverage.doubts(found, covered or {}, architecture.family.model_type)


def _upper_bound(inputs: MemoryInputs, recipe: Recipe, peak: StagePeak, doubts: Doubts) -> int:
    outside = ("cuda_context", "cublas_workspace", "nccl_communicators")
    validated = overheads.upper_bound_bytes(
        allocated_bytes=peak.sizes["allocated_bytes"],
        outside_bytes=sum(peak.outside_bytes.get(name, 0) for name in outside),
        framework=recipe.rules.framework,
        fully_sharded=recipe.rules.fully_sharded,
        communicators=inputs.parallelism.groups,
    )
    return max(peak.total_bytes, validated) + coverage.allowance_bytes(doubts, peak)


def _stage_peaks(inputs: MemoryInputs, recipe: Recipe, common: Mapping[str, int]) -> Iterator[StagePeak]:
    outside = overheads.expected(
        inputs.gpu,
        recipe.rules.framework,
        inputs.parallelism.groups,
        deterministic=inputs.training.deterministic,
        experts="num_experts" in inputs.architecture.sizes,
    )
    pipeline = _stages(inputs, recipe, common)
    return stage_peaks(recipe, inputs.architecture, pipeline, common, outside=outside, gpu=inputs.gpu)


def _stages(inputs: MemoryInputs, recipe: Recipe, sizes: Mapping[str, int]) -> tuple[Stage | None, ...]:
    """The stages of the pipeline; None where one rank has every layer and treats them alike."""
    if recipe.split.whole:
        return (None,)
    segments = inputs.architecture.ledger(recipe.rules.kernels)
    return stages(recipe.split, layer_counts(segments, sizes), tuple(segment.layer for segment in segments))


def layout_sizes(inputs: MemoryInputs, recipe: Recipe) -> dict[str, int]:
    """Every size that formulas name and that is the same on all pipeline stages."""
    layout, model = inputs.parallelism, inputs.architecture.sizes
    tensor, context = layout.tensor_parallel_size, layout.context_parallel_size
    expert_tensor = layout.expert_tensor_ranks(inputs.training.framework)
    shards = layout.sharding_group_size or layout.data_parallel_size * context
    multiprocessors = inputs.gpu.streaming_multiprocessors if inputs.gpu is not None else None
    sizes = {
        **model,
        "micro_batch_size": recipe.micro_batch_size,
        "sequence_length": recipe.sequence_length,
        "target_sequence_length": recipe.target_sequence_length,
        "sharding_group_size": shards,
        "expert_sharding_group_size": max(shards * tensor // (layout.expert_parallel_size * expert_tensor), 1),
        "streaming_multiprocessors": multiprocessors or overheads.ASSUMED_SMS,
        "lora_rank": (inputs.training.lora or Lora()).rank,
    }
    if inputs.training.framework == "deepspeed":
        sizes |= deepspeed.settings(layout)
    if inputs.training.framework == "megatron":
        sizes |= megatron.multiples(shards, sizes["expert_sharding_group_size"])
    if inputs.training.framework in ("megatron", "nanotron"):
        padding = (MEGATRON_VOCABULARY_MULTIPLE if inputs.training.framework == "megatron" else 1) * tensor
        sizes |= {
            name: ceil_div_numbers(size, padding) * padding for name, size in model.items() if "vocab_size" in name
        }
    for name in [name for name in model if is_tensor_split(name)]:
        sizes[per_rank(name)] = ceil_div_numbers(sizes[name], tensor)
    for name in ("sequence_length", "target_sequence_length"):
        sizes[per_rank(name)] = ceil_div_numbers(sizes[name], context)
        sizes[shard(name)] = ceil_div_numbers(sizes[per_rank(name)], tensor)
    if "num_experts" in model:
        rows = sizes[shard("sequence_length")] * expert_tensor if tensor > 1 else sizes[per_rank("sequence_length")]
        chosen = recipe.micro_batch_size * rows * model.get("num_experts_per_tok", 1)
        sizes[per_rank("num_experts")] = model["num_experts"] // layout.expert_parallel_size
        sizes["routed_tokens"] = ceil_div_numbers(chosen * inputs.training.expert_load_percent, 100)
        if "moe_intermediate_size" in model:
            sizes[per_rank("moe_intermediate_size")] = ceil_div_numbers(model["moe_intermediate_size"], expert_tensor)
    return sizes


def _phase_peaks(stage: StagePeak) -> tuple[PhasePeak, ...]:
    peaks: dict[str, PhasePeak] = {}
    for allocated_bytes, moment in stage.weighed():
        if moment.phase not in peaks or allocated_bytes > peaks[moment.phase].allocated_bytes:
            peaks[moment.phase] = PhasePeak(moment.phase, moment.label, allocated_bytes)
    return (*peaks.values(), *_first_step(stage))


def _first_step(stage: StagePeak) -> tuple[PhasePeak, ...]:
    """The highest moment of the first step, where it is lower than that of the steps after it: the states that the
    optimizer makes in its first step are not there before it. Beginning from a checkpoint, they are.
    """
    missing_bytes = stage.made_in_first_step_bytes()
    weighed = tuple(stage.weighed())
    moments = [
        (allocated_bytes - (missing_bytes if moment.phase != "optimizer step" else 0), moment.label)
        for allocated_bytes, moment in weighed
    ]
    highest_bytes, label = max(moments, key=lambda candidate: candidate[0])
    later_bytes = max(allocated_bytes for allocated_bytes, _ in weighed)
    return (PhasePeak("first step", label, highest_bytes),) if highest_bytes < later_bytes else ()


def _hardware_assumptions(inputs: MemoryInputs) -> tuple[str, ...]:
    lines = []
    if inputs.gpu is None:
        lines.append("no GPU given: CUDA context and libraries as on an H100")
    elif inputs.gpus is None:
        lines.append(f"hardware: as many GPUs as the layout needs ({inputs.parallelism.ranks})")
    return tuple(lines)


def _hardware_warnings(inputs: MemoryInputs) -> tuple[str, ...]:
    ranks = inputs.parallelism.ranks
    if inputs.gpus is not None and ranks < inputs.gpus:
        return (f"the layout uses {ranks} of {inputs.gpus} GPUs; raise data_parallel_size to use the rest",)
    return ()


def _answer(
    inputs: MemoryInputs,
    heaviest: _Details,
    pipeline: tuple[PipelineStage, ...],
    *,
    bound: int,
    assumptions: tuple[str, ...],
    warnings: tuple[str, ...],
) -> MemoryEstimate:
    by_group: dict[Group, int] = dict.fromkeys(
        ("weights", "gradients", "optimizer_states", "activations", "temporary", "framework"), 0
    )
    for component in heaviest.components:
        by_group[component.group] += component.bytes
    total_bytes = sum(by_group.values())
    architecture, gpu = inputs.architecture, inputs.gpu
    return MemoryEstimate(
        model=ModelSummary(
            name=architecture.name,
            architecture=architecture.family.class_name,
            parameters=architecture.parameters,
            trainable_parameters=trainable_parameters(inputs),
            active_parameters=architecture.active_parameters,
        ),
        per_gpu=PerGpu(
            **{f"{group}_bytes": amount for group, amount in by_group.items()},
            total_bytes=total_bytes,
            upper_bound_bytes=bound,
        ),
        components=heaviest.components,
        moments=heaviest.phases,
        pipeline_stages=pipeline,
        host=_host_memory(inputs, heaviest),
        cluster_total_bytes=sum(stage.total_bytes for stage in pipeline) * inputs.parallelism.ranks // len(pipeline),
        fits=None if gpu is None else bound <= gpu.usable_bytes,
        headroom_bytes=None if gpu is None else gpu.usable_bytes - bound,
        gpu=gpu,
        sizes=heaviest.sizes,
        estimator=inputs.estimator,
        engine_version=__version__,
        assumptions=assumptions,
        warnings=warnings,
    )


def _host_memory(inputs: MemoryInputs, heaviest: _Details) -> HostMemory:
    one = sum(component.bytes for component in heaviest.host)
    sharing = None if inputs.gpus_per_node is None else min(inputs.gpus_per_node, inputs.parallelism.ranks)
    return HostMemory(one, None if sharing is None else one * sharing, heaviest.host)


def trainable_parameters(inputs: MemoryInputs) -> int:
    """Parameters that the whole job trains: the model's own without frozen layers, or its adapters and what is trained
    beside them.
    """
    training, architecture = inputs.training, inputs.architecture
    lora = training.lora or Lora()
    if inputs.estimator == "rule_of_thumb" or (training.method == "full" and not training.frozen_layers):
        return architecture.trainable_parameters
    if not training.frozen_layers and not lora.modules_to_save:
        return adapters(architecture, lora, pointer="/training/lora").parameters
    alone = replace(inputs, parallelism=Parallelism())
    recipe = resolve(training, alone.parallelism, architecture)
    sizes = {**layout_sizes(alone, recipe), **architecture.sizes}
    (stage,) = _stages(alone, recipe, sizes)
    segments = segments_of(recipe, architecture, stage)
    counts = states.counts_on_rank(segments, experts_apart=False)
    return int(counts[str(states.TRAINABLE)].evaluate({**sizes, **(stage.sizes if stage is not None else {})}))
