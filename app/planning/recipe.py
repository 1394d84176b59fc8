"""A request's training and layout, checked against the model and with every default decided and said."""

from dataclasses import dataclass
from types import MappingProxyType

from app.errors import ImpossibleLayout, InvalidInput
from app.planning.architecture import Architecture
from app.planning.ledger import Kernels
from app.planning.specs import (
    Attention,
    FloatFormat,
    Framework,
    OptimizerImplementation,
    Parallelism,
    Precision,
    Recompute,
    Training,
)

DEFAULT_SEQUENCE_LENGTH = 2048

LONGEST_TARGET = 2**26
"""Where a model has no table of positions to end a target sequence."""

_STATES_PER_PARAMETER = MappingProxyType({"adamw": 2, "adam": 2, "lion": 1, "sgd": 0, "sgd-momentum": 1})
"""Tensors of the parameter's shape that the optimizer keeps."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The discrete choices: they decide which formulas hold, whatever the sizes are."""

    framework: Framework
    precision: Precision
    kernels: Kernels
    recompute: Recompute
    optimizer_states_per_parameter: int
    optimizer_implementation: OptimizerImplementation
    optimizer_has_scratch: bool
    """Whether an unfused step makes temporaries: Adam's denominators and Lion's signs, but nothing in SGD."""
    zero_stage: int
    replicated: bool
    """Whether data-parallel ranks hold the same weights and exchange gradients (DDP and ZeRO-1)."""
    fully_sharded: bool
    """FSDP: weights are gathered block by block in the compute format, and no autocast copies exist."""
    accumulated: bool
    """Whether gradients are summed over several micro batches."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the step runs, with nothing left open."""

    rules: Rules
    micro_batch_size: int
    sequence_length: int
    target_sequence_length: int
    gradient_accumulation_steps: int
    global_batch_size: int
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def resolve(training: Training, parallelism: Parallelism, architecture: Architecture) -> Recipe:
    """Decides every default. Raises InvalidInput or ImpossibleLayout, pointing at what to change."""
    assumptions: list[str] = []
    warnings: list[str] = []
    check_layout(parallelism, training.framework, architecture)
    precision = _precision(training, assumptions)
    attention = _attention(training, precision, assumptions)
    sequence_length = _sequence_length(training, architecture, assumptions, warnings)
    steps, global_batch_size = _batches(training, parallelism)
    implementation = training.optimizer_implementation
    if training.framework in ("deepspeed", "megatron") and implementation != "fused":
        implementation = "fused"
        if "optimizer_implementation" in training.model_fields_set:
            raise InvalidInput.at(
                "/training/optimizer_implementation",
                f"{training.framework} brings its own fused optimizer; send 'fused' or leave the field out",
            )
        assumptions.append(f"optimizer_implementation: fused, which {training.framework} brings")
    sharded = training.framework in ("transformers", "torchtitan") and parallelism.zero_stage >= 2
    rules = Rules(
        framework=training.framework,
        precision=precision,
        kernels=Kernels(
            parameters=precision.compute if sharded or training.framework == "torchtitan" else precision.parameters,
            compute=precision.compute,
            attention=attention,
            fused=training.framework == "megatron",
            fused_cross_entropy=training.fused_cross_entropy,
        ),
        recompute=training.recompute,
        optimizer_states_per_parameter=_STATES_PER_PARAMETER[training.optimizer],
        optimizer_implementation=implementation,
        optimizer_has_scratch=training.optimizer in ("adamw", "adam", "lion"),
        zero_stage=parallelism.zero_stage,
        replicated=parallelism.data_parallel_size > 1 and not sharded,
        fully_sharded=sharded,
        accumulated=steps > 1,
    )
    return Recipe(
        rules=rules,
        micro_batch_size=training.micro_batch_size,
        sequence_length=sequence_length,
        target_sequence_length=_target_length(training, architecture, sequence_length, assumptions),
        gradient_accumulation_steps=steps,
        global_batch_size=global_batch_size,
        assumptions=tuple(assumptions),
        warnings=tuple(warnings),
    )


def check_layout(parallelism: Parallelism, framework: Framework, architecture: Architecture) -> None:
    """Refuses sizes that do not divide what they split, and kinds of parallelism that are not estimated."""
    for size, name, parts, what in (
        (parallelism.tensor_parallel_size, "tensor_parallel_size", "num_attention_heads", "attention heads"),
        (parallelism.pipeline_parallel_size, "pipeline_parallel_size", "num_hidden_layers", "layers"),
    ):
        count = architecture.sizes[parts]
        if count % size:
            fitting = [divisor for divisor in range(1, min(count, 64) + 1) if count % divisor == 0]
            raise ImpossibleLayout.at(
                f"/parallelism/{name}",
                f"{name} {size} does not divide the model's {count} {what}; "
                f"sizes that do: {', '.join(map(str, fitting))}",
            )
    key_value = architecture.sizes["num_key_value_heads"]
    tensor = parallelism.tensor_parallel_size
    if key_value % tensor and tensor % key_value:
        raise ImpossibleLayout.at(
            "/parallelism/tensor_parallel_size",
            f"tensor_parallel_size {tensor} and the model's {key_value} key/value heads do not divide each other",
        )
    experts = architecture.sizes.get("num_experts")
    if parallelism.expert_parallel_size > 1 and experts is None:
        raise ImpossibleLayout.at("/parallelism/expert_parallel_size", "the model has no experts to split; send 1")
    if experts is not None and experts % parallelism.expert_parallel_size:
        raise ImpossibleLayout.at(
            "/parallelism/expert_parallel_size",
            f"expert_parallel_size {parallelism.expert_parallel_size} does not divide the model's {experts} experts",
        )
    for name in (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "context_parallel_size",
        "expert_parallel_size",
    ):
        if getattr(parallelism, name) > 1:
            raise InvalidInput.at(
                f"/parallelism/{name}",
                f"{name} above 1 is not estimated yet: this version answers for one GPU, DDP and ZeRO 1 to 3; "
                "use data_parallel_size and zero_stage",
            )
    if parallelism.sequence_parallel:
        raise ImpossibleLayout.at(
            "/parallelism/sequence_parallel", "sequence parallelism needs tensor_parallel_size above 1"
        )
    if framework == "torchtitan" and parallelism.zero_stage == 1:
        raise ImpossibleLayout.at(
            "/parallelism/zero_stage", "torchtitan has no ZeRO-1; use 0 (DDP), 2 (FSDP without resharding) or 3 (FSDP)"
        )


def _precision(training: Training, assumptions: list[str]) -> Precision:
    preset = training.precision
    if isinstance(preset, Precision):
        if preset.compute == preset.parameters == preset.gradients or preset.parameters in (preset.compute, "fp32"):
            return preset
        raise InvalidInput.at(
            "/training/precision/parameters",
            f"weights in {preset.parameters} cannot be computed with in {preset.compute}; "
            f"keep them in {preset.compute} or fp32",
        )
    if preset is None:
        preset = "bf16-mixed"
        assumptions.append("precision: bf16-mixed")
    if preset in ("int8", "fp8"):
        raise InvalidInput.at(
            "/training/precision",
            f"{preset} is a row of the rule of thumb; the detailed estimator takes "
            "bf16-mixed, fp16-mixed, fp32, bf16 or fp16",
        )
    if preset == "fp32" or preset == "bf16" or preset == "fp16":  # noqa: PLR1714 - mypy narrows by ==
        return Precision(compute=preset, parameters=preset, gradients=preset, optimizer_states=preset)
    half: FloatFormat = "bf16" if preset == "bf16-mixed" else "fp16"
    if training.framework == "deepspeed":
        return Precision(compute=half, parameters=half, gradients=half, master_weights="fp32")
    if training.framework == "megatron":
        gradients: FloatFormat = "fp32" if half == "bf16" else "fp16"  # FP32 copies of FP16 ones are made at the step
        return Precision(compute=half, parameters=half, gradients=gradients, master_weights="fp32")
    return Precision(compute=half, parameters="fp32", gradients="fp32")


def _attention(training: Training, precision: Precision, assumptions: list[str]) -> Attention:
    if training.attention is None:
        attention: Attention = "sdpa" if precision.compute == "fp32" else "flash"
        assumptions.append(f"attention: {attention}")
        return attention
    if training.attention == "flash" and precision.compute == "fp32":
        raise InvalidInput.at(
            "/training/attention", "flash attention computes in 16 bit only; use sdpa or eager with fp32"
        )
    return training.attention


def _sequence_length(
    training: Training, architecture: Architecture, assumptions: list[str], warnings: list[str]
) -> int:
    longest = architecture.shapes.longest_sequence
    if training.sequence_length is None:
        length = min(DEFAULT_SEQUENCE_LENGTH, longest)
        assumptions.append(f"sequence_length: {length}")
        return length
    if training.sequence_length > longest:
        if "position_rows" in architecture.sizes:
            raise InvalidInput.at(
                "/training/sequence_length",
                f"the model has {longest} learned positions; sequence_length {training.sequence_length} "
                "needs a model with more",
            )
        warnings.append(
            f"sequence_length {training.sequence_length} is beyond the {longest} positions the model was made for"
        )
    return training.sequence_length


def _target_length(training: Training, architecture: Architecture, sequence_length: int, assumptions: list[str]) -> int:
    if architecture.family.family != "encoder-decoder":
        if training.target_sequence_length is not None:
            raise InvalidInput.at(
                "/training/target_sequence_length",
                f"{architecture.family.model_type} has no decoder beside an encoder; leave target_sequence_length out",
            )
        return sequence_length
    positions = architecture.shapes.longest_sequence if "position_rows" in architecture.sizes else LONGEST_TARGET
    longest = architecture.sizes.get("target_position_rows", positions)
    if training.target_sequence_length is None:
        length = min(sequence_length, longest)
        assumptions.append(f"target_sequence_length: {length}")
        return length
    if training.target_sequence_length > longest:
        raise InvalidInput.at(
            "/training/target_sequence_length", f"the model has {longest} target positions; send at most as many"
        )
    return training.target_sequence_length


def _batches(training: Training, parallelism: Parallelism) -> tuple[int, int]:
    per_step = training.micro_batch_size * parallelism.data_parallel_size
    steps = training.gradient_accumulation_steps
    if training.global_batch_size is None:
        return steps or 1, per_step * (steps or 1)
    if training.global_batch_size % per_step:
        raise ImpossibleLayout.at(
            "/training/global_batch_size",
            f"global_batch_size {training.global_batch_size} is not a multiple of "
            f"micro_batch_size × data_parallel_size = "
            f"{training.micro_batch_size} × {parallelism.data_parallel_size} = {per_step}",
        )
    needed = training.global_batch_size // per_step
    if steps is not None and steps != needed:
        raise ImpossibleLayout.at(
            "/training/gradient_accumulation_steps",
            f"global_batch_size {training.global_batch_size} takes {needed} accumulation steps, not {steps}; "
            "leave one of them out",
        )
    return needed, training.global_batch_size
