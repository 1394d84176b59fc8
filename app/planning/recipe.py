"""A request's training and layout, checked against the model and with every default decided and said."""

from dataclasses import dataclass
from typing import Any

from app.errors import ImpossibleLayout, InvalidInput
from app.planning import lora as lora_rules
from app.planning.architecture import Architecture
from app.planning.ledger import AdapterRule, BlockRecompute, Kernels, ShiftedLoss
from app.planning.liger import norm_of
from app.planning.pipeline import Split, layers_by_cost
from app.planning.refusals import OWN_OPTIMIZERS, check_accumulation, check_packing, check_request
from app.planning.specs import (
    Attention,
    FloatFormat,
    Framework,
    Gpu,
    Lora,
    Offload,
    Optimizer,
    OptimizerImplementation,
    Parallelism,
    Precision,
    Training,
)
from app.planning.state_formats import formats_of

DEFAULT_SEQUENCE_LENGTH = 2048

DEFAULT_GALORE_RANK = 128

SHIFTED_INSIDE = (4, 46)
"""Release of transformers from which on a loss function shifts the logits, no longer the model's code."""

SHIFTED_NEVER = (4, 49)
"""Release of transformers from which on the labels are shifted instead (its pull request 35646)."""

EAGER_ONLY = frozenset({"bloom", "deberta", "deberta-v2"})
"""Model types whose class has neither flash attention nor sdpa."""

WITHOUT_FLASH = EAGER_ONLY | {"t5", "mt5", "umt5", "longt5"}
"""Model types whose class has no flash attention."""

WITHOUT_SDPA = EAGER_ONLY | {
    "gemma2",
    "gpt_neo",
    "gpt_oss",
    "granite_swa",
    "granitemoe_swa",
    "mimo_v2_flash",
    "nllb-moe",
    "pegasus_x",
    "t5gemma",
    "vaultgemma",
}
"""Model types whose class has no sdpa: Hugging Face runs them with eager attention unless told otherwise."""

AMPERE = 8.0
"""Compute capability from which on GPUs have BF16 units and flash attention."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The discrete choices: they decide which formulas hold, whatever the sizes are."""

    framework: Framework
    precision: Precision
    kernels: Kernels
    optimizer: Optimizer
    optimizer_implementation: OptimizerImplementation
    galore_rank: int
    zero_stage: int
    states_sharded: bool
    """Whether each rank keeps a shard of master weights and optimizer states: from ZeRO-1 on, and in DeepSpeed's BF16
    optimizer without ZeRO too.
    """
    hybrid: bool
    """Whether groups of ranks that shard replicate each other."""
    secondary: bool
    """Whether groups of ranks share a second copy of the weights (ZeRO++'s hpZ)."""
    replicated: bool
    """Whether data-parallel ranks exchange gradients otherwise than FSDP does."""
    fully_sharded: bool
    """FSDP: weights are gathered block by block in the compute format, and no autocast copies exist."""
    accumulated: bool
    """Whether gradients are summed over several micro batches."""
    experts_apart: bool
    """Whether routed experts are sharded over other ranks than the rest."""
    offload: Offload
    steps_in_backward: bool
    piped: bool
    """Whether the layers are split into pipeline stages."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the step runs, with nothing left open."""

    rules: Rules
    split: Split
    micro_batch_size: int
    sequence_length: int
    target_sequence_length: int
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def resolve(training: Training, parallelism: Parallelism, architecture: Architecture, gpu: Gpu | None = None) -> Recipe:
    """Decides every default. Raises InvalidInput or ImpossibleLayout, pointing at what to change."""
    assumptions: list[str] = []
    warnings: list[str] = []
    check_request(training, parallelism, architecture, gpu)
    old = gpu is not None and float(gpu.compute_capability) < AMPERE
    precision = formats_of(training, parallelism, assumptions, old=old)
    precision, frozen = _with_adapters(training, precision, architecture, assumptions)
    attention = _attention(training, precision, architecture.family.model_type, assumptions, old=old)
    if old and precision.compute == "bf16":
        warnings.append("this GPU has no BF16 units: PyTorch emulates BF16 there, slowly; fp16-mixed runs natively")
    sequence_length = _sequence_length(training, architecture, assumptions, warnings)
    assumptions += [
        f"{name}: {getattr(training, name)}"
        for name in ("framework", "optimizer", "micro_batch_size", "recompute")
        if name not in training.model_fields_set
    ]
    implementation = _optimizer_implementation(training, assumptions)
    steps, split = _split(training, parallelism, architecture, assumptions)
    check_accumulation(training, steps)
    check_packing(training, attention, architecture)
    kernels = _kernels(training, parallelism, architecture, precision, attention, frozen)
    rules = _rules(training, parallelism, precision, kernels, implementation, steps=steps)
    if training.cuda_graphs:
        warnings.append("cuda_graphs: the memory pools of captured graphs are not estimated")
    return Recipe(
        rules=rules,
        split=split,
        micro_batch_size=training.micro_batch_size,
        sequence_length=sequence_length,
        target_sequence_length=_target_length(training, architecture, sequence_length, assumptions),
        assumptions=(*assumptions, *_taken_for_granted(training, parallelism, architecture, rules)),
        warnings=tuple(warnings),
    )


def _optimizer_implementation(training: Training, assumptions: list[str]) -> OptimizerImplementation:
    framework, given = training.framework, training.optimizer_implementation
    is_said = "optimizer_implementation" in training.model_fields_set
    if framework in OWN_OPTIMIZERS:
        if is_said and given != "fused":
            raise InvalidInput.at(
                "/training/optimizer_implementation",
                f"{framework} brings its own fused optimizer; send 'fused' or leave the field out",
            )
        if not is_said:
            assumptions.append(f"optimizer_implementation: fused, which {framework} brings")
        return "fused"
    if framework == "torchtitan" and not is_said:
        assumptions.append("optimizer_implementation: fused, torchtitan's default")
        return "fused"
    if not is_said:
        assumptions.append(f"optimizer_implementation: {given}")
    return given


def _is_fully_sharded(training: Training, parallelism: Parallelism) -> bool:
    """Whether FSDP shards; DeepSpeed's ZeRO-2 and 3 gather by other rules."""
    return training.framework != "deepspeed" and parallelism.zero_stage >= 2


def _shifted_loss(training: Training, architecture: Architecture) -> ShiftedLoss:
    """Where this release of transformers copies the logits that have a next token."""
    if training.transformers_version is None or architecture.family.family != "decoder-only":
        return "never"
    release = tuple(int(part) for part in training.transformers_version.split(".")[:2])
    if release >= SHIFTED_NEVER:
        return "never"
    return "inside" if release >= SHIFTED_INSIDE else "in-model"


def _kernels(
    training: Training,
    parallelism: Parallelism,
    architecture: Architecture,
    precision: Precision,
    attention: Attention,
    frozen: dict[str, Any],
) -> Kernels:
    framework, tensor = training.framework, parallelism.tensor_parallel_size > 1
    experts = (parallelism.expert_parallel_size, parallelism.expert_tensor_ranks(framework))
    return Kernels(
        parameters=precision.compute if _is_fully_sharded(training, parallelism) else precision.parameters,
        compute=precision.compute,
        attention=attention,
        packed=training.packing and attention == "sdpa",
        fused=framework == "megatron",
        fused_cross_entropy=training.fused_cross_entropy or training.use_liger_kernel,
        liger=norm_of(architecture.family.model_type) if training.use_liger_kernel else None,
        fused_norm=framework in ("nanotron", "torchtitan"),
        in_place_loss=training.in_place_cross_entropy,
        shifted_loss=_shifted_loss(training, architecture),
        one_qkv_buffer=framework == "nanotron",
        sharded_loss=framework in ("megatron", "nanotron"),
        compiled=training.compile,
        compiled_loss=training.compile_loss is not False,
        fp8=training.precision == "fp8-mixed" and framework != "torchtitan",
        tensor_parallel=tensor,
        sequence_parallel=tensor and (parallelism.sequence_parallel or framework == "torchtitan"),
        context_parallel=parallelism.context_parallel_size > 1,
        expert_parallel="num_experts" in architecture.sizes
        and (max(experts) > 1 or training.expert_load_percent > 100),
        gathers_again=framework in ("megatron", "nanotron"),
        skips_idle=framework in ("transformers", "torchtitan"),
        **frozen,
    )


def _rules(
    training: Training,
    parallelism: Parallelism,
    precision: Precision,
    kernels: Kernels,
    implementation: OptimizerImplementation,
    *,
    steps: int,
) -> Rules:
    replicas = parallelism.data_parallel_size * parallelism.context_parallel_size
    sharded = _is_fully_sharded(training, parallelism)
    return Rules(
        framework=training.framework,
        precision=precision,
        kernels=kernels,
        optimizer=training.optimizer,
        optimizer_implementation=implementation,
        galore_rank=training.galore_rank or DEFAULT_GALORE_RANK,
        zero_stage=parallelism.zero_stage,
        states_sharded=parallelism.zero_stage >= 1
        or (training.framework == "deepspeed" and precision.gradients == "fp32" and precision.parameters == "bf16"),
        hybrid=parallelism.sharding_group_size not in (None, replicas),
        secondary=(parallelism.zero_hpz_partition_size or 1) > 1,
        replicated=replicas > 1 and not sharded,
        fully_sharded=sharded,
        accumulated=steps > 1,
        experts_apart=kernels.expert_parallel,
        offload=parallelism.offload,
        steps_in_backward=training.optimizer_in_backward,
        piped=parallelism.pipeline_parallel_size > 1,
    )


def _taken_for_granted(
    training: Training, parallelism: Parallelism, architecture: Architecture, rules: Rules
) -> list[str]:
    """What a job needs beside the fields of the request to run as it is estimated."""
    is_plain = training.framework == "transformers"
    towers = sorted({count.name for count in architecture.components} & {"vision", "audio"})
    idle = f"the weights for {' and '.join(towers)}"
    lines = {
        "sequence_parallel: true, which torchtitan's tensor parallelism brings": rules.kernels.sequence_parallel
        and not parallelism.sequence_parallel,
        f"inputs: text only, which leaves {idle} without gradients and optimizer states": (
            bool(towers) and rules.kernels.skips_idle
        ),
        f"inputs: text only, but {idle} have gradients and optimizer states all the same": (
            bool(towers) and not rules.kernels.skips_idle
        ),
        f"transformers_version: {SHIFTED_NEVER[0]}.{SHIFTED_NEVER[1]} or newer": training.transformers_version is None
        and training.framework in ("transformers", "deepspeed")
        and architecture.family.family == "decoder-only"
        and not rules.kernels.fused_cross_entropy,
        "compile_loss: true, head and loss are compiled too": training.compile and training.compile_loss is None,
        "offload: torchao's CPUOffloadOptimizer, which keeps states and steps on the host": is_plain
        and parallelism.offload == "optimizer",
        "pipeline stages: torch.distributed.pipelining": is_plain and rules.piped,
        "sharding_group_size: MiCS (mics_shard_size): weights, gradients and states are sharded within groups": (
            training.framework == "deepspeed" and rules.hybrid
        ),
        "zero_hpz_partition_size: ZeRO++'s hpZ: a second copy of the weights within groups of ranks": rules.secondary,
        f"bnb_4bit_quant_storage: {rules.precision.compute}, without which quantized weights are not sharded": (
            training.method == "qlora" and parallelism.zero_stage == 3
        ),
        "gradient accumulation without synchronization: each rank keeps whole gradients in between": is_plain
        and rules.fully_sharded
        and rules.accumulated,
    }
    return [line for line, holds in lines.items() if holds]


def _split(
    training: Training, parallelism: Parallelism, architecture: Architecture, assumptions: list[str]
) -> tuple[int, Split]:
    """Micro batches per step, and how the layers are spread."""
    stages, chunks = parallelism.pipeline_parallel_size, parallelism.virtual_pipeline_size
    steps = _accumulation_steps(training, parallelism)
    if stages > 1 and training.global_batch_size is None and training.gradient_accumulation_steps is None:
        steps = stages
        assumptions.append(f"gradient_accumulation_steps: {steps}, as many micro batches as pipeline stages")
    schedule = parallelism.pipeline_schedule
    if schedule is None:
        schedule = "interleaved-1f1b" if chunks > 1 else "1f1b"
        if stages > 1:
            assumptions.append(f"pipeline_schedule: {schedule}")
    if schedule == "zero-bubble":
        schedule = "zb-h1"
    spread = parallelism.layers_per_stage
    if spread is None and training.framework == "nanotron" and stages > 1:
        sizes = architecture.sizes
        hidden = sizes["hidden_size"]
        cost = 4 * sizes["num_attention_heads"] * sizes["head_dim"] * hidden + 3 * sizes["intermediate_size"] * hidden
        spread = layers_by_cost(sizes["num_hidden_layers"], cost, sizes["vocab_size"] * hidden, stages)
    remade = frozenset(training.recompute_modules or ("core_attn",))
    if "moe" in remade:
        remade |= {"moe_act", "shared_experts"}
    return steps, Split(
        stages=stages,
        chunks=chunks,
        schedule=schedule,
        micro_batches=steps,
        layers_per_stage=spread,
        recompute=_recompute(training),
        recompute_layers=training.recompute_layers,
        remade=remade if training.recompute == "selective" else frozenset(),
        frozen_layers=training.frozen_layers,
        offloaded=training.offload_checkpoints,
        lingers=training.use_reentrant and training.method != "full" and _is_fully_sharded(training, parallelism),
    )


def _recompute(training: Training) -> BlockRecompute:
    """torchtitan's selective checkpointing goes by operators, unless modules are named."""
    if training.recompute == "selective" and training.framework == "torchtitan" and training.recompute_modules is None:
        return "operators"
    return training.recompute


def _with_adapters(
    training: Training, precision: Precision, architecture: Architecture, assumptions: list[str]
) -> tuple[Precision, dict[str, Any]]:
    """The formats of a job that trains adapters beside frozen weights, and what `Kernels` says of them."""
    if training.method == "full":
        if training.lora is not None:
            raise InvalidInput.at("/training/lora", "adapters need method lora or qlora; leave lora out otherwise")
        return precision, {}
    given = training.lora or Lora()
    chosen = lora_rules.adapters(architecture, given, pointer="/training/lora")
    base = given.base_format or ("nf4" if training.method == "qlora" else precision.compute)
    whole: FloatFormat = base if base in ("fp32", "bf16", "fp16") else precision.compute
    if given.prepared:
        whole = "fp32"
    trained = given.adapter_format or "fp32"
    assumptions.append(
        f"frozen weights: {base}; adapters: {trained}, rank {given.rank}, beside {len(chosen.layers)} kinds of layers"
    )
    formats = Precision(compute=precision.compute, parameters=whole, gradients=trained, optimizer_states=trained)
    rule = AdapterRule(
        frozenset(layer.name.rpartition(".")[2] for layer in chosen.layers),
        trained,
        frozenset(given.modules_to_save or ()),
    )
    mixed = not isinstance(training.precision, Precision) and training.precision not in ("bf16", "fp16", "fp32")
    return formats, {
        "frozen": True,
        "under_autocast": mixed,
        "adapters": rule,
        "base_format": None if base == whole else base,
    }


def _attention(
    training: Training, precision: Precision, model_type: str, assumptions: list[str], *, old: bool
) -> Attention:
    if training.attention is None:
        attention: Attention = "flash"
        own_kernels = training.framework in ("megatron", "torchtitan")
        if model_type in EAGER_ONLY or (model_type in WITHOUT_SDPA and not own_kernels):
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
        training.attention == "sdpa" and model_type in WITHOUT_SDPA
    ):
        has = "flash and eager attention" if model_type in WITHOUT_SDPA else "sdpa and eager attention"
        if model_type in EAGER_ONLY:
            has = "eager attention only"
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
