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
    Gpu,
    OptimizerImplementation,
    Parallelism,
    Precision,
    Recompute,
    Training,
)

DEFAULT_SEQUENCE_LENGTH = 2048

EAGER_ONLY = frozenset({"bloom", "deberta", "deberta-v2"})
"""Model types whose class has neither flash attention nor sdpa."""

WITHOUT_FLASH = EAGER_ONLY | {"t5", "mt5", "umt5", "longt5"}
"""Model types whose class has no flash attention."""

AMPERE = 8.0
"""Compute capability from which on GPUs have BF16 units and flash attention."""

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
    """Whether data-parallel ranks exchange gradients otherwise than FSDP does."""
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
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def resolve(training: Training, parallelism: Parallelism, architecture: Architecture, gpu: Gpu | None = None) -> Recipe:
    """Decides every default. Raises InvalidInput or ImpossibleLayout, pointing at what to change."""
    assumptions: list[str] = []
    warnings: list[str] = []
    check_layout(parallelism, training.framework, architecture)
    old = gpu is not None and float(gpu.compute_capability) < AMPERE
    precision = _precision(training, assumptions, old=old)
    attention = _attention(training, precision, architecture.family.model_type, assumptions, old=old)
    if old and precision.compute == "bf16":
        warnings.append("this GPU has no BF16 units: PyTorch emulates BF16 there, slowly; fp16-mixed runs natively")
    sequence_length = _sequence_length(training, architecture, assumptions, warnings)
    steps = _accumulation_steps(training, parallelism)
    assumptions += [
        f"{name}: {getattr(training, name)}"
        for name in ("framework", "optimizer", "micro_batch_size", "recompute")
        if name not in training.model_fields_set
    ]
    implementation = training.optimizer_implementation
    if "optimizer_implementation" not in training.model_fields_set and training.framework == "transformers":
        assumptions.append(f"optimizer_implementation: {implementation}")
    if "optimizer_implementation" not in training.model_fields_set and training.framework == "torchtitan":
        implementation = "fused"
        assumptions.append("optimizer_implementation: fused, torchtitan's default")
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
            parameters=precision.compute if sharded else precision.parameters,
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
    if sharded and rules.accumulated and training.framework == "transformers":
        assumptions.append("gradient accumulation without synchronization: each rank keeps whole gradients in between")
    return Recipe(
        rules=rules,
        micro_batch_size=training.micro_batch_size,
        sequence_length=sequence_length,
        target_sequence_length=_target_length(training, architecture, sequence_length, assumptions),
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
        if count > 1 and count % size:
            fitting = [divisor for divisor in range(1, min(count, 64) + 1) if count % divisor == 0]
            raise ImpossibleLayout.at(
                f"/parallelism/{name}",
                f"{name} {size} does not divide the model's {count} {what}; "
                f"sizes that do: {', '.join(map(str, fitting))}; of these only 1 is estimated yet",
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
    if framework == "megatron" and parallelism.zero_stage >= 2:
        raise ImpossibleLayout.at(
            "/parallelism/zero_stage", "Megatron's distributed optimizer is ZeRO-1; use 0 or 1, or another framework"
        )
    if framework == "torchtitan" and parallelism.zero_stage == 1:
        raise ImpossibleLayout.at(
            "/parallelism/zero_stage", "torchtitan has no ZeRO-1; use 0 (DDP), 2 (FSDP without resharding) or 3 (FSDP)"
        )


def _precision(training: Training, assumptions: list[str], *, old: bool) -> Precision:
    preset = training.precision
    if isinstance(preset, Precision):
        _check_precision(preset, training.framework)
        return preset
    if preset is None:
        preset = "fp16-mixed" if old else "bf16-mixed"
        assumptions.append(f"precision: {preset}")
    if preset in ("int8", "fp8"):
        raise InvalidInput.at(
            "/training/precision",
            f"{preset} is a row of the rule of thumb; the detailed estimator takes "
            "bf16-mixed, fp16-mixed, fp32, bf16 or fp16",
        )
    if preset == "fp32" or preset == "bf16" or preset == "fp16":  # noqa: PLR1714 - mypy narrows by ==
        if preset != "fp32" and training.framework in ("deepspeed", "megatron"):
            assumptions.append(f"precision {preset}: everything in {preset}, without the FP32 master weights of a mix")
        return Precision(compute=preset, parameters=preset, gradients=preset, optimizer_states=preset)
    half: FloatFormat = "bf16" if preset == "bf16-mixed" else "fp16"
    if training.framework == "deepspeed":
        return Precision(compute=half, parameters=half, gradients=half, master_weights="fp32")
    if training.framework == "megatron":
        gradients: FloatFormat = "fp32" if half == "bf16" else "fp16"  # FP32 copies of FP16 ones are made at the step
        return Precision(compute=half, parameters=half, gradients=gradients, master_weights="fp32")
    return Precision(compute=half, parameters="fp32", gradients="fp32")


def _check_precision(precision: Precision, framework: Framework) -> None:
    """Refuses combinations of formats that the framework cannot run."""
    own_optimizer = framework in ("deepspeed", "megatron")
    weights = (precision.compute,) if framework == "megatron" else (precision.compute, "fp32")
    gradients = (precision.parameters, "fp32") if own_optimizer else (precision.parameters,)
    if precision.parameters not in weights:
        raise InvalidInput.at(
            "/training/precision/parameters",
            f"{framework} cannot compute in {precision.compute} with weights in {precision.parameters}; "
            f"keep them in {' or '.join(dict.fromkeys(weights))}",
        )
    if precision.gradients not in gradients:
        raise InvalidInput.at(
            "/training/precision/gradients",
            f"{framework} keeps gradients of {precision.parameters} weights in {' or '.join(dict.fromkeys(gradients))}",
        )
    if precision.master_weights and not own_optimizer:
        raise InvalidInput.at(
            "/training/precision/master_weights", f"{framework}'s optimizers keep no master weights; leave them out"
        )
    if precision.master_weights and precision.parameters == "fp32":
        raise InvalidInput.at("/training/precision/master_weights", "the weights are FP32 already; leave them out")


def _attention(
    training: Training, precision: Precision, model_type: str, assumptions: list[str], *, old: bool
) -> Attention:
    if training.attention is None:
        attention: Attention = "flash"
        if model_type in EAGER_ONLY:
            attention = "eager"
        elif precision.compute == "fp32" or old or model_type in WITHOUT_FLASH:
            attention = "sdpa"
        assumptions.append(f"attention: {attention}")
        return attention
    if training.attention == "flash" and precision.compute == "fp32":
        raise InvalidInput.at(
            "/training/attention", "flash attention computes in 16 bit only; use sdpa or eager with fp32"
        )
    if (training.attention == "flash" and model_type in WITHOUT_FLASH) or (
        training.attention == "sdpa" and model_type in EAGER_ONLY
    ):
        has = "eager attention only" if model_type in EAGER_ONLY else "sdpa and eager attention"
        raise InvalidInput.at("/training/attention", f"the class of {model_type} has {has}")
    if training.attention == "flash" and old:
        raise InvalidInput.at("/training/attention", "flash attention needs compute capability 8.0; use sdpa or eager")
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
    positions = architecture.shapes.longest_sequence if "position_rows" in architecture.sizes else sequence_length
    longest = architecture.sizes.get("target_position_rows", positions)
    if training.target_sequence_length is None:
        length = min(sequence_length, longest)
        assumptions.append(f"target_sequence_length: {length}")
        return length
    bounded = "target_position_rows" in architecture.sizes or "position_rows" in architecture.sizes
    if bounded and training.target_sequence_length > longest:
        raise InvalidInput.at(
            "/training/target_sequence_length", f"the model has {longest} target positions; send at most as many"
        )
    return training.target_sequence_length


def _accumulation_steps(training: Training, parallelism: Parallelism) -> int:
    per_step = training.micro_batch_size * parallelism.data_parallel_size
    steps = training.gradient_accumulation_steps
    if training.global_batch_size is None:
        return steps or 1
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
    return needed
