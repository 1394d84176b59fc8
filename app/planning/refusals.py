"""What of a request is refused, with what to do instead: sizes that do not divide what they split, layouts that a
framework does not run, and fields that would do nothing where they stand.
"""

from app.errors import ImpossibleLayout, InvalidInput, UnknownName
from app.planning.architecture import Architecture
from app.planning.liger import check_liger
from app.planning.specs import Attention, Framework, Gpu, Lora, Parallelism, RecomputeModule, Training

ADA = 8.9
"""Compute capability from which on GPUs have FP8 units."""

OWN_OPTIMIZERS = frozenset({"deepspeed", "megatron", "nanotron"})
"""Frameworks whose optimizer steps over flat buffers, after backward."""

TWO_CHUNKS = frozenset({"zb-v", "v-half", "v-min", "dualpipe-v"})
"""Schedules that give each stage two chunks of layers without being told."""

ZERO3_ONLY = (
    "zero_hpz_partition_size",
    "stage3_max_live_parameters",
    "stage3_prefetch_bucket_size",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
)
"""Fields of the layout that only DeepSpeed's ZeRO-3 reads."""

_EXPERT_MODULES: frozenset[RecomputeModule] = frozenset({"moe", "moe_act", "shared_experts"})


def check_request(training: Training, parallelism: Parallelism, architecture: Architecture, gpu: Gpu | None) -> None:
    """Raises InvalidInput or ImpossibleLayout for a field that cannot have the meaning it was sent for."""
    _check_layout(parallelism, training, architecture)
    _check_training(training, architecture)
    _check_recompute(training, architecture)
    _check_parallelism(training, parallelism, architecture)
    _check_nanotron(training, parallelism, architecture)
    _check_stages(parallelism, architecture)
    _check_offload(training, parallelism)
    if training.use_liger_kernel:
        check_liger(training.framework, architecture.family.model_type)
    if training.precision == "fp8-mixed" and gpu is not None and float(gpu.compute_capability) < ADA:
        raise InvalidInput.at(
            "/training/precision",
            f"fp8-mixed needs FP8 units, compute capability {ADA}: {gpu.key} has {gpu.compute_capability}; "
            "use bf16-mixed or fp16-mixed",
        )


def check_accumulation(training: Training, steps: int) -> None:
    """Raises InvalidInput where gradients are gone before a second micro batch could add to them."""
    if steps > 1 and training.optimizer_in_backward:
        raise InvalidInput.at(
            "/training/optimizer_in_backward",
            f"a step in backward leaves no gradient to accumulate over {steps} micro batches; accumulate over 1",
        )
    if steps > 1 and training.optimizer == "lomo":
        raise InvalidInput.at(
            "/training/optimizer",
            f"LOMO updates weights in backward and cannot accumulate over {steps} micro batches; accumulate over 1",
        )


def check_packing(training: Training, attention: Attention, architecture: Architecture) -> None:
    """Raises InvalidInput where sequences of several documents cannot be kept apart, or how is not known."""
    if not training.packing:
        return
    if architecture.family.family != "decoder-only" or "head_dim" not in architecture.sizes:
        raise InvalidInput.at(
            "/training/packing",
            f"packing keeps documents apart in the causal attention of decoders, and {architecture.family.model_type} "
            "is another kind of model; leave it out",
        )
    if attention == "sdpa" and training.framework not in ("transformers", "deepspeed"):
        raise InvalidInput.at(
            "/training/attention",
            f"{training.framework} keeps packed documents apart by their boundaries, not by sdpa's mask; use flash",
        )


def _check_layout(parallelism: Parallelism, training: Training, architecture: Architecture) -> None:
    framework = training.framework
    _check_heads(parallelism, architecture)
    _check_pipeline(parallelism, framework, architecture)
    _check_experts(parallelism, framework, architecture)
    if parallelism.sequence_parallel and parallelism.tensor_parallel_size == 1:
        raise ImpossibleLayout.at(
            "/parallelism/sequence_parallel", "sequence parallelism needs tensor_parallel_size above 1"
        )
    shards, ranks = parallelism.sharding_group_size, parallelism.data_parallel_size * parallelism.context_parallel_size
    if shards is not None and ranks % shards:
        raise ImpossibleLayout.at(
            "/parallelism/sharding_group_size",
            f"sharding_group_size {shards} does not divide data × context parallel ranks, {ranks}",
        )
    if framework == "megatron" and parallelism.zero_stage == 2:
        raise ImpossibleLayout.at(
            "/parallelism/zero_stage",
            "Megatron's distributed optimizer is ZeRO-1 and its FSDP ZeRO-3; use 0, 1 or 3, or another framework",
        )
    if framework == "nanotron" and parallelism.zero_stage >= 2:
        raise ImpossibleLayout.at("/parallelism/zero_stage", "nanotron has ZeRO-1 only; use 0 or 1")
    if framework == "torchtitan" and parallelism.zero_stage == 1:
        raise ImpossibleLayout.at(
            "/parallelism/zero_stage", "torchtitan has no ZeRO-1; use 0 (DDP), 2 (FSDP without resharding) or 3 (FSDP)"
        )
    if training.offload_checkpoints and training.recompute != "full":
        raise InvalidInput.at(
            "/training/offload_checkpoints",
            "what is offloaded are the inputs of recomputed blocks; set recompute: full",
        )
    if training.use_reentrant and (training.recompute != "full" or framework != "transformers"):
        raise InvalidInput.at(
            "/training/use_reentrant",
            "use_reentrant is how transformers checkpoints whole blocks; set recompute: full with that framework",
        )
    if training.frozen_layers and parallelism.pipeline_parallel_size > 1:
        raise ImpossibleLayout.at("/training/frozen_layers", "frozen layers are not estimated with pipeline stages")


def _check_heads(parallelism: Parallelism, architecture: Architecture) -> None:
    size, count = parallelism.tensor_parallel_size, architecture.sizes["num_attention_heads"]
    if count > 1 and count % size:
        fitting = [divisor for divisor in range(1, min(count, 64) + 1) if count % divisor == 0]
        raise ImpossibleLayout.at(
            "/parallelism/tensor_parallel_size",
            f"tensor_parallel_size {size} does not divide the model's {count} attention heads; "
            f"sizes that do: {', '.join(map(str, fitting))}",
        )
    key_value = architecture.sizes["num_key_value_heads"]
    if key_value % size and size % key_value:
        raise ImpossibleLayout.at(
            "/parallelism/tensor_parallel_size",
            f"tensor_parallel_size {size} and the model's {key_value} key/value heads do not divide each other",
        )


def _check_pipeline(parallelism: Parallelism, framework: Framework, architecture: Architecture) -> None:
    stages, chunks, layers = (
        parallelism.pipeline_parallel_size,
        parallelism.virtual_pipeline_size,
        architecture.sizes["num_hidden_layers"],
    )
    if stages * chunks > layers > 0 and framework != "nanotron" and parallelism.layers_per_stage is None:
        raise ImpossibleLayout.at(
            "/parallelism/pipeline_parallel_size",
            f"{stages} stages of {chunks} chunks are more than the model's {layers} layers; use at most {layers}",
        )
    if layers > 1 and layers % (stages * chunks) and framework != "nanotron" and parallelism.layers_per_stage is None:
        fitting = [divisor for divisor in range(1, layers + 1) if layers % divisor == 0]
        raise ImpossibleLayout.at(
            "/parallelism/pipeline_parallel_size",
            f"{stages} stages of {chunks} chunks do not divide the model's {layers} layers; "
            f"products that do: {', '.join(map(str, fitting))}; or say layers_per_stage",
        )
    if chunks > 1 and stages == 1:
        raise ImpossibleLayout.at(
            "/parallelism/virtual_pipeline_size", "virtual stages need pipeline_parallel_size above 1"
        )
    if parallelism.pipeline_schedule is not None:
        interleaved = parallelism.pipeline_schedule == "interleaved-1f1b"
        if interleaved != (chunks > 1):
            raise ImpossibleLayout.at(
                "/parallelism/pipeline_schedule",
                "interleaved-1f1b and virtual_pipeline_size above 1 go together; set both or neither",
            )
    if parallelism.layers_per_stage is not None and len(parallelism.layers_per_stage) != stages:
        raise ImpossibleLayout.at(
            "/parallelism/layers_per_stage",
            f"layers_per_stage counts {len(parallelism.layers_per_stage)} stages, and pipeline_parallel_size is "
            f"{stages}; send one count for each stage",
        )


def _check_experts(parallelism: Parallelism, framework: Framework, architecture: Architecture) -> None:
    experts, split = architecture.sizes.get("num_experts"), parallelism.expert_parallel_size
    if split > 1 and experts is None:
        raise ImpossibleLayout.at("/parallelism/expert_parallel_size", "the model has no experts to split; send 1")
    if experts is None:
        return
    if experts % split:
        raise ImpossibleLayout.at(
            "/parallelism/expert_parallel_size",
            f"expert_parallel_size {split} does not divide the model's {experts} experts",
        )
    ranks = parallelism.data_parallel_size * parallelism.context_parallel_size * parallelism.tensor_parallel_size
    tensor = parallelism.expert_tensor_ranks(framework)
    if ranks % (split * tensor):
        raise ImpossibleLayout.at(
            "/parallelism/expert_parallel_size",
            f"expert_parallel_size × expert_tensor_parallel_size = {split} × {tensor} does not divide the "
            f"data × context × tensor parallel ranks it is taken from, {ranks}",
        )


def _check_training(training: Training, architecture: Architecture) -> None:
    if training.galore_rank is not None and training.optimizer != "galore-adamw":
        raise InvalidInput.at(
            "/training/galore_rank", "galore_rank is read with optimizer galore-adamw only; leave it out otherwise"
        )
    base = None if training.lora is None else training.lora.base_format
    if training.method == "qlora" and base in ("fp32", "bf16", "fp16"):
        raise InvalidInput.at(
            "/training/lora/base_format", f"qlora quantizes the frozen weights; to keep them in {base} send method lora"
        )
    if training.lora is not None and training.method != "full":
        _check_modules_to_save(training.lora, architecture)
    layers = architecture.sizes["num_hidden_layers"]
    if training.frozen_layers >= layers > 0:
        raise InvalidInput.at(
            "/training/frozen_layers",
            f"the model has {layers} layers; freeze fewer, or train adapters with method lora",
        )
    if training.transformers_version is not None and training.framework not in ("transformers", "deepspeed"):
        raise InvalidInput.at(
            "/training/transformers_version",
            f"{training.framework} does not train the classes of transformers; leave transformers_version out",
        )
    fused = training.fused_cross_entropy or training.use_liger_kernel
    if training.in_place_cross_entropy and (fused or training.framework in ("megatron", "nanotron")):
        reason = "another loss" if fused else f"the loss of {training.framework}, which does so by itself"
        raise InvalidInput.at("/training/in_place_cross_entropy", f"the request has {reason}; leave it out")
    if training.fused_cross_entropy and training.framework == "nanotron":
        raise InvalidInput.at(
            "/training/fused_cross_entropy", "nanotron's loss is its own and holds its logits whole; leave it out"
        )
    if training.compile_loss is not None and not training.compile:
        raise InvalidInput.at("/training/compile_loss", "nothing is compiled without compile: true; leave it out")
    if training.expert_load_percent > 100 and "num_experts" not in architecture.sizes:
        raise InvalidInput.at("/training/expert_load_percent", "the model has no experts; leave it out")
    if training.optimizer_in_backward and training.framework in OWN_OPTIMIZERS:
        raise InvalidInput.at(
            "/training/optimizer_in_backward",
            f"{training.framework} steps over whole buffers after backward; use transformers or torchtitan",
        )


def _check_modules_to_save(lora: Lora, architecture: Architecture) -> None:
    """Modules are told by the last part of their name, as the ledger knows them."""
    names = {
        operation.name.rpartition(".")[0].rpartition(".")[2]
        for segment in architecture.ledger()
        for operation in segment.operations
        if operation.weights or operation.tied
    }
    known = sorted(name for name in names if not name.startswith(("pre_", "post_")))
    for index, module in enumerate(lora.modules_to_save or ()):
        if module not in known:
            raise UnknownName.among(
                "module",
                module,
                known,
                pointer=f"/training/lora/modules_to_save/{index}",
                see=f"the modules {', '.join(known)}",
            )


def _check_recompute(training: Training, architecture: Architecture) -> None:
    if training.recompute_layers is not None:
        layers = architecture.sizes["num_hidden_layers"]
        if training.recompute != "full":
            raise InvalidInput.at(
                "/training/recompute_layers",
                "recompute_layers counts the blocks of full recomputation; set recompute: full",
            )
        if training.recompute_layers > layers:
            raise InvalidInput.at(
                "/training/recompute_layers", f"the model has {layers} layers; leave it out to recompute all"
            )
    if training.recompute_modules is None:
        return
    if training.recompute != "selective":
        raise InvalidInput.at(
            "/training/recompute_modules",
            "recompute_modules names what selective recomputation makes again; set recompute: selective",
        )
    if "num_experts" not in architecture.sizes:
        for index, module in enumerate(training.recompute_modules):
            if module in _EXPERT_MODULES:
                raise InvalidInput.at(
                    f"/training/recompute_modules/{index}", f"the model has no experts, and so no {module}"
                )

    if "mla_up_proj" in training.recompute_modules and "kv_lora_rank" not in architecture.sizes:
        raise InvalidInput.at(
            f"/training/recompute_modules/{training.recompute_modules.index('mla_up_proj')}",
            "the model has no latent attention, and so no mla_up_proj",
        )


def _check_parallelism(training: Training, parallelism: Parallelism, architecture: Architecture) -> None:
    if parallelism.reduce_bucket_size is not None and training.framework != "deepspeed":
        raise InvalidInput.at(
            "/parallelism/reduce_bucket_size", "reduce_bucket_size is DeepSpeed's; leave it out with other frameworks"
        )
    _check_zero3(training, parallelism)
    if parallelism.sharding_group_size is not None and parallelism.zero_stage == 0:
        raise ImpossibleLayout.at(
            "/parallelism/sharding_group_size", "zero_stage 0 shards nothing; set zero_stage, or leave the size out"
        )
    if parallelism.expert_tensor_parallel_size is not None and "num_experts" not in architecture.sizes:
        raise ImpossibleLayout.at(
            "/parallelism/expert_tensor_parallel_size", "the model has no experts to split; leave it out"
        )
    width, split = architecture.sizes.get("moe_intermediate_size"), parallelism.expert_tensor_parallel_size
    if width is not None and split is not None and width % split:
        raise ImpossibleLayout.at(
            "/parallelism/expert_tensor_parallel_size",
            f"expert_tensor_parallel_size {split} does not divide the experts' width {width}",
        )
    if parallelism.context_parallel_size > 1 and "head_dim" not in architecture.sizes:
        raise ImpossibleLayout.at(
            "/parallelism/context_parallel_size",
            f"context parallelism of {architecture.family.model_type} models is not estimated; send 1",
        )


def _check_zero3(training: Training, parallelism: Parallelism) -> None:
    """What DeepSpeed has with ZeRO-3 only."""
    layout, is_zero3 = parallelism, training.framework == "deepspeed" and parallelism.zero_stage == 3
    for name in ZERO3_ONLY:
        if getattr(layout, name) is not None and not is_zero3:
            raise InvalidInput.at(
                f"/parallelism/{name}", f"{name} is read by DeepSpeed's ZeRO-3 only; leave it out otherwise"
            )
    ranks, secondary = layout.data_parallel_size * layout.context_parallel_size, layout.zero_hpz_partition_size
    if secondary is not None and ranks % secondary:
        raise ImpossibleLayout.at(
            "/parallelism/zero_hpz_partition_size",
            f"zero_hpz_partition_size {secondary} does not divide data × context parallel ranks, {ranks}",
        )
    grouped = layout.sharding_group_size not in (None, ranks)
    if grouped and training.framework == "deepspeed" and (not is_zero3 or (secondary or 1) > 1):
        raise ImpossibleLayout.at(
            "/parallelism/sharding_group_size",
            "DeepSpeed shards within groups by MiCS, which is ZeRO-3; set zero_stage 3, or leave the size out"
            if not is_zero3
            else "MiCS and hpZ do not go together; leave sharding_group_size or zero_hpz_partition_size out",
        )


def _check_nanotron(training: Training, parallelism: Parallelism, architecture: Architecture) -> None:
    if training.framework != "nanotron":
        return
    family = architecture.family
    if family.family != "decoder-only" or "head_dim" not in architecture.sizes:
        raise InvalidInput.at(
            "/training/framework",
            f"nanotron trains decoders with attention; {family.model_type} is another kind of model",
        )
    if parallelism.pipeline_schedule not in (None, "1f1b", "gpipe"):
        raise ImpossibleLayout.at(
            "/parallelism/pipeline_schedule", "nanotron has two schedules, 1f1b and gpipe (all forward, all backward)"
        )
    if parallelism.virtual_pipeline_size > 1:
        raise ImpossibleLayout.at("/parallelism/virtual_pipeline_size", "nanotron has no virtual stages; send 1")


def _check_stages(parallelism: Parallelism, architecture: Architecture) -> None:
    stages, layers = parallelism.pipeline_parallel_size, architecture.sizes["num_hidden_layers"]
    if parallelism.pipeline_schedule is not None and stages == 1:
        raise ImpossibleLayout.at(
            "/parallelism/pipeline_schedule",
            "a schedule needs pipeline_parallel_size above 1; set it or leave this out",
        )
    if parallelism.pipeline_schedule == "dualpipe" and stages % 2:
        raise ImpossibleLayout.at(
            "/parallelism/pipeline_parallel_size", "dualpipe pairs the stages of both ends; use an even number of them"
        )
    if parallelism.pipeline_schedule in TWO_CHUNKS and 2 * stages > layers > 0:
        raise ImpossibleLayout.at(
            "/parallelism/pipeline_parallel_size",
            f"{parallelism.pipeline_schedule} gives each of {stages} stages two chunks, and the model has {layers} "
            f"layers; use at most {layers // 2} stages",
        )
    spread = parallelism.layers_per_stage
    if spread is None:
        return
    if parallelism.pipeline_schedule in (*TWO_CHUNKS, "dualpipe"):
        raise ImpossibleLayout.at(
            "/parallelism/layers_per_stage",
            f"{parallelism.pipeline_schedule} gives each stage layers of both ends of the model; leave this out",
        )
    layers = sum(segment.repeats.evaluate(architecture.sizes) for segment in architecture.ledger() if segment.layer)
    if sum(spread) != layers:
        raise ImpossibleLayout.at(
            "/parallelism/layers_per_stage",
            f"layers_per_stage counts {sum(spread)} layers, and the model has {layers}",
        )


def _check_offload(training: Training, parallelism: Parallelism) -> None:
    if parallelism.offload == "none":
        return
    framework, stage, weights = training.framework, parallelism.zero_stage, parallelism.offload != "optimizer"
    instead = None
    if framework == "nanotron":
        instead = "nanotron offloads nothing; use another framework"
    elif framework == "megatron" and weights:
        instead = "Megatron offloads the optimizer only; send optimizer"
    elif framework == "deepspeed" and (stage == 0 or (weights and stage < 3)):
        instead = (
            "DeepSpeed offloads weights with ZeRO-3 only; set zero_stage 3, or send optimizer"
            if weights
            else "DeepSpeed offloads what ZeRO shards; set zero_stage 1, 2 or 3"
        )
    elif framework == "torchtitan" and (stage < 2 or not weights):
        instead = "torchtitan offloads FSDP's shards whole; set zero_stage 2 or 3 and send optimizer+parameters"
    elif framework == "transformers" and weights and stage < 2:
        instead = "PyTorch offloads weights with FSDP only; set zero_stage 2 or 3, or send optimizer"
    if instead is not None:
        raise ImpossibleLayout.at("/parallelism/offload", instead)
