"""The vocabulary of a plan: how to train, split over what, on which hardware.

Frozen and strict: unknown fields, numbers in strings and booleans for integers are refused, so that a misspelt knob is
never ignored. Field names follow Megatron, DeepSpeed, PyTorch and Hugging Face. Used as they are by the API, the
command line and stored plans.
"""

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
    computed_field,
)

from app.units import MIB

Framework = Literal["transformers", "deepspeed", "megatron", "torchtitan", "nanotron"]
Method = Literal["full", "lora", "qlora"]
FloatFormat = Literal["fp32", "bf16", "fp16"]
StateFormat = Literal["fp32", "bf16", "fp16", "fp8"]
BaseFormat = Literal["nf4", "nf4-double", "int4", "int8", "fp8", "bf16", "fp16", "fp32"]
PrecisionPreset = Literal["bf16-mixed", "fp16-mixed", "fp8-mixed", "fp32", "bf16", "fp16", "int8", "fp8"]
Optimizer = Literal[
    "adamw",
    "adam",
    "adamw-amsgrad",
    "adamax",
    "nadam",
    "radam",
    "sgd",
    "sgd-momentum",
    "adagrad",
    "rmsprop",
    "lion",
    "adafactor",
    "came",
    "adam-mini",
    "ademamix",
    "sophia",
    "shampoo",
    "soap",
    "muon",
    "galore-adamw",
    "lomo",
    "badam",
    "adamw-8bit",
    "paged-adamw",
    "paged-adamw-8bit",
    "lion-8bit",
    "sgd-momentum-8bit",
    "ademamix-8bit",
    "adamw-8bit-torchao",
    "adamw-4bit-torchao",
]
OptimizerImplementation = Literal["foreach", "fused", "for-loop"]
PipelineSchedule = Literal[
    "1f1b",
    "gpipe",
    "interleaved-1f1b",
    "zero-bubble",
    "zb-h1",
    "zb-h2",
    "zb-v",
    "v-half",
    "v-min",
    "dualpipe",
    "dualpipe-v",
]
Offload = Literal["none", "optimizer", "optimizer+parameters"]
RecomputeModule = Literal["core_attn", "mlp", "moe", "moe_act", "layernorm", "mla_up_proj", "shared_experts"]
Recompute = Literal["none", "selective", "full"]
Attention = Literal["flash", "sdpa", "eager"]
Estimator = Literal["detailed", "rule_of_thumb"]

LARGEST_COUNT = 2**40
"""No count in a request may be larger: far beyond any machine, and small enough that every product stays an exact
int64.
"""

ASSUMED_RESERVED_BYTES = 640 * MIB
"""Driver reserve where no reading is published: a little above the largest seen on a card without one, 614 MiB on
H200.
"""

Count = Annotated[StrictInt, Field(ge=1, le=LARGEST_COUNT)]
Degree = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
Name = Annotated[StrictStr, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
LayerName = Annotated[StrictStr, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,100}$")]
LayerNames = Annotated[tuple[LayerName, ...], Field(min_length=1, max_length=100)]

_RELEASE = r"^[1-9]\d?\.\d{1,3}(\.[0-9A-Za-z.+]{1,40})?$"


def _release(text: str) -> str:
    if re.fullmatch(_RELEASE, text) is None:
        raise ValueError(
            f"should be a release, its first two numbers at least, such as 4.44 or 4.49.0, not {text[:60]}"
        )
    return text


Release = Annotated[StrictStr, AfterValidator(_release), Field(json_schema_extra={"pattern": _RELEASE})]


class Spec(BaseModel):
    """What every part of a request shares: frozen, and no field that is not described here."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class Precision(Spec):
    """Which format each part of the training state has, where no preset says it."""

    compute: FloatFormat
    """Format of matrix products and of what they save for backward."""
    parameters: FloatFormat
    """Format the weights are kept in between steps."""
    gradients: FloatFormat
    """Format the gradients are kept in."""
    master_weights: FloatFormat | None = None
    """A second copy of the weights that the optimizer updates; null for none. In 16 bit it is what Megatron's
    `store_param_remainders` keeps: the bits that the 16-bit weights lack.
    """
    optimizer_states: StateFormat = "fp32"
    """Format of the optimizer's states."""
    second_moments: StateFormat | None = None
    """Format of Adam's second moment where it has one of its own: `exp_avg_sq_dtype` of Megatron's precision-aware
    optimizer. Default: that of `optimizer_states`.
    """


class Lora(Spec):
    """Low-rank adapters, as PEFT's `LoraConfig` describes them."""

    rank: Annotated[StrictInt, Field(ge=1, le=65_536)] = 8
    """Rank of each adapter."""
    target_modules: Literal["all-linear"] | LayerNames | None = None
    """Layers that get an adapter, by the last part of their name, or `all-linear`. Default: PEFT's for the model."""
    modules_to_save: LayerNames | None = None
    """Modules that are trained whole beside the adapters, such as `embed_tokens` and `lm_head`."""
    adapter_format: FloatFormat | None = None
    """Format of the adapters. Default FP32, as PEFT makes them; the weights' own format where that is FP32."""
    prepared: StrictBool = False
    """PEFT's `prepare_model_for_kbit_training`: everything that is not quantized, and the residual stream, in FP32."""
    base_format: BaseFormat | None = None
    """Format of the frozen weights: all of them in a float format, the blocks' linear layers in a quantized one (`nf4`,
    `nf4-double` with quantized scales, `int4` in groups of 128 as GPTQ makes it). Default: the compute format for
    `lora`, `nf4` for `qlora`.
    """


class Training(Spec):
    """How the model is trained. Everything left out is decided by the framework's own default and said in
    `assumptions`.
    """

    method: Method = "full"
    """What is trained: all weights, or low-rank adapters beside frozen weights (`lora`), which `qlora` quantizes."""
    lora: Lora | None = None
    """The adapters of `lora` and `qlora`."""
    frozen_layers: Annotated[StrictInt, Field(ge=0, le=2**20)] = 0
    """Blocks at the input that get no gradient, with the embeddings below them."""
    precision: PrecisionPreset | Precision | None = None
    """A preset, or the format of each part. Default `bf16-mixed`; `fp32` for the rule of thumb, which also knows
    `int8` and `fp8`.
    """
    optimizer: Optimizer = "adamw"
    """The optimizer; it decides how many states a parameter has."""
    galore_rank: Annotated[StrictInt, Field(ge=1, le=65_536)] | None = None
    """Rank of GaLore's projection. Default 128."""
    optimizer_implementation: OptimizerImplementation = "foreach"
    """PyTorch's implementation of the step; `foreach` needs scratch memory of the size of the gradients, `fused` none.
    """
    micro_batch_size: Annotated[StrictInt, Field(ge=1, le=2**20)] = 1
    """Sequences that one rank takes through forward and backward at once."""
    global_batch_size: Annotated[StrictInt, Field(ge=1, le=2**30)] | None = None
    """Sequences per optimizer step over all ranks: micro batch × data-parallel ranks × accumulation steps."""
    gradient_accumulation_steps: Annotated[StrictInt, Field(ge=1, le=2**20)] | None = None
    """Micro batches per optimizer step; follows from the batch sizes when `global_batch_size` is given."""
    target_sequence_length: Annotated[StrictInt, Field(ge=1, le=2**26)] | None = None
    """Tokens per target sequence of an encoder-decoder model. Default: as many as `sequence_length`, or the most that
    the decoder takes.
    """
    sequence_length: Annotated[StrictInt, Field(ge=1, le=2**26)] | None = None
    """Tokens per sequence; of an encoder-decoder model, per source sequence. Default 2,048, or the longest the model
    takes if that is shorter.
    """
    packing: StrictBool = False
    """Each sequence is packed with several documents, which do not attend to each other: flash attention takes their
    boundaries, `sdpa` a mask of all tokens of a sequence by all. False also where documents do attend to each other.
    """
    recompute: Recompute = "none"
    """Activations made again in backward instead of kept: none; modules of a block (`selective`: the attention core, or
    `recompute_modules`; under torchtitan, operators); or each block (`full`).
    """
    attention: Attention | None = None
    """Attention implementation. Default `flash` in 16 bit; `sdpa` in FP32 and on GPUs before Ampere, where flash
    attention does not exist; what the model's class has, where it lacks these.
    """
    framework: Framework = "transformers"
    """Whose code trains: it decides which copies of weights and gradients exist, and what a layer saves for backward.
    """
    recompute_layers: Annotated[StrictInt, Field(ge=1, le=2**20)] | None = None
    """How many blocks `full` recomputation makes again (Megatron's `block` method). Default: all."""
    offload_checkpoints: StrictBool = False
    """Inputs of recomputed blocks wait in host memory (Unsloth's checkpointing, DeepSpeed's `cpu_checkpointing`)."""
    use_reentrant: StrictBool = False
    """Recomputed blocks are checkpointed with `use_reentrant=True` around their FSDP unit, as transformers before 4.53
    does by default: beside frozen weights their inputs and gradients then stay until backward ends.
    """
    optimizer_in_backward: StrictBool = False
    """The optimizer steps on each weight as soon as backward has its gradient, which is freed at once (torchtune)."""
    recompute_modules: Annotated[tuple[RecomputeModule, ...], Field(min_length=1)] | None = None
    """What `selective` recomputation makes again, in Megatron's words. Default: the attention core."""
    fused_cross_entropy: StrictBool = False
    """A loss that never holds the logits of all tokens at once (Liger, cut cross-entropy); Megatron's fused loss."""
    in_place_cross_entropy: StrictBool = False
    """A loss that writes the gradient over the FP32 logits (Unsloth's fast cross entropy, flash-attn's
    `inplace_backward`, Liger's cross entropy without the fused linear layer).
    """
    use_liger_kernel: StrictBool = False
    """Liger's Triton kernels, as the Trainer's argument of this name puts them into a model's class: RMSNorm, SwiGLU or
    GEGLU, and the loss without whole logits.
    """
    transformers_version: Release | None = None
    """Release of `transformers`, such as `4.44`. Before 4.49 the loss of causal models copies all logits once more, and
    what it frees of other sizes stays in the allocator's cache. Default: one from 4.49 on.
    """
    compile: StrictBool = False
    """`torch.compile`: pointwise operators are fused, and keep only what crosses a fused region."""
    compile_loss: StrictBool | None = None
    """Whether `compile` covers head and loss as well as the blocks (torchtitan: `compile.components`). Default: yes."""
    deterministic: StrictBool = False
    """PyTorch's deterministic algorithms: cuBLAS workspaces of 32 MiB, which `CUBLAS_WORKSPACE_CONFIG=:4096:8` sets."""
    expert_load_percent: Annotated[StrictInt, Field(ge=100, le=10_000)] = 100
    """Tokens that the fullest rank's experts get, in percent of an even share."""
    cuda_graphs: StrictBool = False
    """Steps are captured as CUDA graphs, whose memory pools stay allocated."""


class Parallelism(Spec):
    """How the job is split. Ranks = data × tensor × pipeline × context."""

    data_parallel_size: Degree = 1
    """Replicas, or shards of the model states, that see different data."""
    zero_stage: Annotated[StrictInt, Field(ge=0, le=3)] = 0
    """What data-parallel ranks shard: 0 nothing (DDP), 1 optimizer states, 2 gradients too, 3 weights too (FSDP)."""
    sharding_group_size: Degree | None = None
    """Ranks over which ZeRO or FSDP shards; groups replicate each other (hybrid sharding; under DeepSpeed MiCS, its
    `mics_shard_size`). Default: all data-parallel ranks.
    """
    reduce_bucket_size: Annotated[StrictInt, Field(ge=1, le=2**34)] | None = None
    """Elements of DeepSpeed's reduce bucket. Default 500,000,000, DeepSpeed's own; Hugging Face's `auto` is
    `hidden_size` squared.
    """
    zero_hpz_partition_size: Degree | None = None
    """ZeRO++'s hpZ under DeepSpeed: ranks that share a second 16-bit copy of the weights, made in forward for backward,
    while all states stay sharded over every rank. 1, DeepSpeed's default, is no second copy.
    """
    stage3_max_live_parameters: Annotated[StrictInt, Field(ge=0, le=LARGEST_COUNT)] | None = None
    """Elements that DeepSpeed's ZeRO-3 keeps gathered at most, as far as it may choose. Default 1,000,000,000."""
    stage3_prefetch_bucket_size: Annotated[StrictInt, Field(ge=0, le=LARGEST_COUNT)] | None = None
    """Elements that each module under DeepSpeed's ZeRO-3 gathers ahead, so that soon as many are live as may be; 0 for
    none. Default 50,000,000.
    """
    stage3_max_reuse_distance: Annotated[StrictInt, Field(ge=0, le=LARGEST_COUNT)] | None = None
    """Elements used in between, up to which DeepSpeed's ZeRO-3 keeps a gathered weight for its next use. Default
    1,000,000,000.
    """
    stage3_param_persistence_threshold: Annotated[StrictInt, Field(ge=0, le=LARGEST_COUNT)] | None = None
    """Elements up to which DeepSpeed's ZeRO-3 keeps a weight whole on every rank. Default 100,000; Hugging Face's
    `auto` is 10 times `hidden_size`.
    """
    stage3_model_persistence_threshold: Annotated[StrictInt, Field(ge=0, le=LARGEST_COUNT)] | None = None
    """Elements that all weights kept whole so have at most. Default: no limit."""
    tensor_parallel_size: Degree = 1
    """Ranks that split each layer's matrices."""
    sequence_parallel: StrictBool = False
    """Megatron sequence parallelism: norms and dropouts split over the tensor-parallel ranks."""
    pipeline_parallel_size: Degree = 1
    """Ranks that split the layers into stages."""
    pipeline_schedule: PipelineSchedule | None = None
    """In which order stages run micro batches. Default `1f1b`, or `interleaved-1f1b` with virtual stages."""
    virtual_pipeline_size: Degree = 1
    """Chunks of layers that each pipeline rank holds."""
    layers_per_stage: Annotated[tuple[Annotated[StrictInt, Field(ge=0, le=2**20)], ...], Field(min_length=1)] | None = (
        None
    )
    """Blocks of each stage, first to last, where they are not spread evenly."""
    context_parallel_size: Degree = 1
    """Ranks that split the sequence."""
    expert_parallel_size: Degree = 1
    """Ranks that split the experts of a mixture-of-experts model; taken from data, context and tensor ranks."""
    expert_tensor_parallel_size: Degree | None = None
    """Ranks that split each expert's matrices. Default: `tensor_parallel_size` without expert parallelism, and always
    under Megatron; else 1.
    """
    offload: Offload = "none"
    """What host memory keeps instead of the GPU: the optimizer's states and step, and the weights as well."""

    @property
    def ranks(self) -> int:
        """GPUs the layout needs."""
        return (
            self.data_parallel_size
            * self.tensor_parallel_size
            * self.pipeline_parallel_size
            * self.context_parallel_size
        )

    def expert_tensor_ranks(self, framework: Framework) -> int:
        """Ranks that split each expert's matrices."""
        if self.expert_tensor_parallel_size is not None:
            return self.expert_tensor_parallel_size
        if framework == "megatron" or self.expert_parallel_size == 1:
            return self.tensor_parallel_size
        return 1

    @property
    def groups(self) -> int:
        """Kinds of groups that a rank communicates in: one communicator each."""
        sizes = (
            self.data_parallel_size,
            self.tensor_parallel_size,
            self.pipeline_parallel_size,
            self.context_parallel_size,
            self.expert_parallel_size,
        )
        return sum(size > 1 for size in sizes)


class Gpu(Spec):
    """A GPU as the driver reports it: one row of the catalogue."""

    key: Name
    """Catalogue key, such as `h100-sxm-80gb`."""
    name: Name
    """Name for people."""
    nvml_names: tuple[Name, ...]
    """Exact names NVML gives this card; matched whole, never in part."""
    architecture: Name
    """NVIDIA architecture, such as `Hopper`."""
    compute_capability: Name
    """CUDA compute capability, such as `9.0`."""
    memory_bytes: Count
    """Total memory as NVML reports it, which is what a job can see at most."""
    reserved_bytes: Annotated[StrictInt, Field(ge=0)] | None
    """Memory the driver keeps for itself; CUDA sees total − reserved. Null where no reading is known."""
    streaming_multiprocessors: Count | None
    """Number of SMs; the size of a CUDA context follows it."""
    memory_bandwidth_bytes_per_second: float | None
    """Peak memory bandwidth."""
    dense_flops_per_second: dict[str, float]
    """Peak dense rate by format, without sparsity."""
    nvlink_bytes_per_second_per_direction: float | None
    """NVLink bandwidth of the card, one direction; null for none."""
    thermal_design_power_watts: Annotated[StrictInt, Field(ge=1)] | None
    """Power limit the card ships with."""
    source: Annotated[StrictStr, StringConstraints(min_length=1)]
    """Where the figures come from."""
    notes: str | None
    """What a planner should know about this card."""

    @computed_field  # type: ignore[prop-decorator] # mypy does not know a property may be decorated
    @property
    def usable_bytes(self) -> int:
        """What CUDA can give out: total minus what the driver reserves, or minus 640 MiB where no reading is known."""
        return self.memory_bytes - (ASSUMED_RESERVED_BYTES if self.reserved_bytes is None else self.reserved_bytes)


class Hardware(Spec):
    """GPUs of one kind, by catalogue key. Without counts, as many GPUs are assumed as the layout needs."""

    gpu: Name
    """Key of the catalogue (`GET /v1/gpus`)."""
    gpus_per_node: Degree | None = None
    """GPUs in one node."""
    nodes: Degree | None = None
    """Number of nodes; 1 when only `gpus_per_node` is given."""
