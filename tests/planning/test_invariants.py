"""What must hold for every split of every kind of model, found by drawing requests at random."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from app import catalog
from app.errors import InvalidInput
from app.planning.architecture import Architecture, from_config
from app.planning.ledger import Segment
from app.planning.lora import adapters
from app.planning.memory import MemoryEstimate, MemoryInputs, estimate, layout_sizes
from app.planning.peaks import bytes_between_steps, counts_on_rank, segments_of, step_moments
from app.planning.pipeline import Stage, layer_counts, stages
from app.planning.recipe import Recipe, resolve
from app.planning.sizes import evaluate
from app.planning.specs import Lora, Parallelism, Training
from app.planning.timeline import moments

H100 = catalog.load().gpu("h100-sxm-80gb")
LAYERS = 8

DENSE = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
}
TIED = {**DENSE, "tie_word_embeddings": True}
EXPERTS = {
    **DENSE,
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 512,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 256,
    "n_layer": LAYERS,
    "n_head": 8,
    "n_positions": 2048,
    "vocab_size": 4096,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "vocab_size": 4096,
}
T5 = {
    "model_type": "t5",
    "d_model": 256,
    "d_ff": 1024,
    "d_kv": 32,
    "num_heads": 8,
    "num_layers": LAYERS // 2,
    "num_decoder_layers": LAYERS // 2,
    "vocab_size": 4096,
}
MODELS = {
    name: from_config(config)
    for name, config in {
        "dense": DENSE,
        "tied": TIED,
        "experts": EXPERTS,
        "gpt2": GPT2,
        "bert": BERT,
        "t5": T5,
    }.items()
}
LLAMA_8B = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
STAGES_OF_ZERO = {
    "transformers": (0, 1, 2, 3),
    "deepspeed": (0, 1, 2, 3),
    "megatron": (0, 1, 3),
    "torchtitan": (0, 2, 3),
    "nanotron": (0, 1),
}
V_SCHEDULES = ("zb-v", "v-half", "v-min", "dualpipe", "dualpipe-v")
ONE_CHUNK = ("1f1b", "gpipe", "zero-bubble", "zb-h2", *V_SCHEDULES)

Request = tuple[str, Training, Parallelism]
"""The name of a model, its training, and its layout."""


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request that can run; the few draws that cannot are refused by the estimate and drawn again."""
    framework = draw(st.sampled_from(sorted(STAGES_OF_ZERO)))
    name = draw(st.sampled_from(("dense", "experts", "gpt2", "tied") if framework == "nanotron" else sorted(MODELS)))
    zero = draw(st.sampled_from(STAGES_OF_ZERO[framework]))
    method = draw(st.sampled_from(("full", "full", "lora", "qlora")))
    recompute = draw(st.sampled_from(("none", "selective", "full")))
    training = Training.model_validate(
        {
            "framework": framework,
            "method": method,
            "lora": {"rank": draw(st.sampled_from((1, 8))), "target_modules": "all-linear"}
            if method != "full"
            else None,
            "precision": draw(st.sampled_from(("bf16-mixed", "fp16-mixed", "fp32", "bf16"))),
            "optimizer": draw(st.sampled_from(("adamw", "sgd-momentum", "adafactor", "adamw-8bit"))),
            "micro_batch_size": draw(st.integers(1, 4)),
            "sequence_length": draw(st.sampled_from((64, 96, 512))),
            "gradient_accumulation_steps": draw(st.sampled_from((1, 4, 8))),
            "recompute": recompute,
            "recompute_layers": draw(st.sampled_from((None, 1, 3))) if recompute == "full" else None,
            "compile": draw(st.booleans()),
            "fused_cross_entropy": draw(st.booleans()),
        }
    )
    return name, training, draw(layouts(framework, name, zero))


@st.composite
def layouts(draw: st.DrawFn, framework: str, name: str, zero: int) -> Parallelism:
    """A split of one of the models that the framework has."""
    tensor, pipeline = draw(st.sampled_from((1, 2, 4))), draw(st.sampled_from((1, 2, 4)))
    schedules: tuple[str | None, ...] = (None,)
    chunks, data = 1, draw(st.sampled_from((1, 2, 4, 8)))
    if pipeline > 1:
        chunks = draw(st.sampled_from((1, 2))) if framework != "nanotron" and name != "t5" else 1
        schedules = (None, "1f1b", "gpipe") if framework == "nanotron" else (None, *ONE_CHUNK)
    offloads = {
        "transformers": ("none", "optimizer", "optimizer+parameters"),
        "deepspeed": ("none", "optimizer", "optimizer+parameters")[: zero + 1 if zero < 2 else zero],
        "megatron": ("none", "optimizer"),
        "torchtitan": ("none", "optimizer+parameters") if zero >= 2 else ("none",),
        "nanotron": ("none",),
    }
    return Parallelism.model_validate(
        {
            "data_parallel_size": data,
            "zero_stage": zero,
            "sharding_group_size": draw(st.sampled_from((None, data))) if zero else None,
            "tensor_parallel_size": tensor,
            "sequence_parallel": tensor > 1 and draw(st.booleans()),
            "pipeline_parallel_size": pipeline,
            "virtual_pipeline_size": chunks,
            "pipeline_schedule": draw(st.sampled_from(schedules)) if chunks == 1 else None,
            "context_parallel_size": draw(st.sampled_from((1, 2))) if name != "t5" else 1,
            "expert_parallel_size": draw(st.sampled_from((1, 2, 4))) if name == "experts" else 1,
            "offload": draw(st.sampled_from(("none", *offloads[framework]))),
        }
    )


def ask(architecture: Architecture, training: Training, layout: Parallelism | None = None) -> MemoryEstimate:
    return estimate(MemoryInputs(architecture, training, layout or Parallelism(), H100, None, "detailed"))


def answered(request: Request) -> MemoryEstimate:
    """The answer; requests that are refused are drawn again."""
    name, training, layout = request
    try:
        return ask(MODELS[name], training, layout)
    except InvalidInput:
        reject()


def stages_of(
    request: tuple[Architecture, Training, Parallelism],
) -> list[tuple[Recipe, tuple[Segment, ...], dict[str, int]]]:
    """The segments and sizes of every pipeline stage."""
    architecture, training, layout = request
    recipe = resolve(training, layout, architecture)
    sizes = layout_sizes(MemoryInputs(*request, None, None, "detailed"), recipe)
    ledger, split = architecture.ledger(recipe.rules.kernels), recipe.split
    spread: tuple[Stage | None, ...] = (None,)
    if not split.whole:
        spread = stages(split, layer_counts(ledger, sizes), tuple(segment.block for segment in ledger))
    counted = []
    for stage in spread:
        segments = segments_of(recipe, architecture, stage)
        own = sizes | (stage.sizes if stage is not None else {})
        counts = counts_on_rank(recipe.rules, segments)
        counted.append((recipe, segments, own | {name: count.evaluate(own) for name, count in counts.items()}))
    return counted


def activations_after_forward(request: tuple[Architecture, Training, Parallelism]) -> list[int]:
    """What each stage keeps of activations when forward is over, other micro batches included."""
    kept = []
    for _, segments, sizes in stages_of(request):
        (end,) = [moment for moment in moments(segments) if moment.label == "end of forward"]
        kept.append(sum(amount.evaluate(sizes) for amount in (*end.saved.values(), end.weight_casts)))
    return kept


@given(requests(), st.lists(st.integers(0, LAYERS), min_size=3, max_size=3).map(sorted))
@settings(max_examples=30)
def test_each_stage_holds_its_largest_moment(request: Request, cuts: list[int]) -> None:
    """Stages are priced together, spread evenly or not: each is what its own moments say one by one."""
    name, training, layout = request
    if layout.pipeline_parallel_size == len(cuts) + 1 and name != "t5":
        spread = tuple(end - start for start, end in pairwise((0, *cuts, LAYERS)))
        layout = layout.model_copy(update={"layers_per_stage": spread})
    answer = answered((name, training, layout))
    workspaces = sum(component.bytes for component in answer.components if component.name == "cublas_workspace")
    of_stages = stages_of((MODELS[name], training, layout))
    for stage, (recipe, segments, sizes) in zip(answer.pipeline_stages, of_stages, strict=True):
        highest = max(moment.allocated.evaluate(sizes) for moment in step_moments(recipe.rules, segments))
        between_steps = bytes_between_steps(recipe.rules, segments).evaluate(sizes)
        assert stage.allocated_bytes == highest + workspaces
        assert stage.between_steps_bytes == between_steps + workspaces


@given(requests())
@settings(max_examples=140)
def test_every_answer_adds_up(request: Request) -> None:
    """Components to groups and the total, formulas to bytes, stages to the answer and the cluster."""
    answer, layout = answered(request), request[2]
    assert sum(component.bytes for component in answer.components) == answer.per_gpu.total_bytes
    groups = {component.group for component in answer.components}
    for group in groups:
        together = sum(component.bytes for component in answer.components if component.group == group)
        assert together == getattr(answer.per_gpu, f"{group}_bytes")
    for component in answer.components:
        assert type(component.bytes) is int
        assert component.bytes > 0
        assert evaluate(component.formula, answer.sizes) == component.bytes
    for component in answer.host.components:
        assert evaluate(component.formula, answer.sizes) == component.bytes >= 0
    assert sum(component.bytes for component in answer.host.components) == answer.host.per_rank_bytes
    assert answer.per_gpu.upper_bound_bytes >= answer.per_gpu.total_bytes
    assert [stage.stage for stage in answer.pipeline_stages] == list(range(layout.pipeline_parallel_size))
    assert max(stage.total_bytes for stage in answer.pipeline_stages) == answer.per_gpu.total_bytes
    for stage in answer.pipeline_stages:
        assert 0 < stage.allocated_bytes <= stage.reserved_bytes <= stage.total_bytes
        if layout.offload == "none":
            assert 0 < stage.between_steps_bytes <= stage.allocated_bytes
    replicas = layout.ranks // layout.pipeline_parallel_size
    assert answer.cluster_total_bytes == replicas * sum(stage.total_bytes for stage in answer.pipeline_stages)


@given(requests(), st.lists(st.integers(1, 5), min_size=3, max_size=3))
@settings(max_examples=50)
def test_numbers_and_arrays_give_the_same_bytes(request: Request, times: list[int]) -> None:
    answer = answered(request)
    grown = [
        name
        for name in answer.sizes
        if name.startswith(("micro_batch", "sequence_length", "target_", "sharding", "expert_sharding", "layers_"))
        or name in ("routed_tokens", "lora_rank")
        or name.endswith("_on_rank")
    ]
    columns = {name: np.array(times, dtype=np.int64) * answer.sizes[name] for name in grown}
    points = [{name: answer.sizes[name] * by for name in grown} for by in times]
    for component in answer.components:
        together = np.broadcast_to(evaluate(component.formula, {**answer.sizes, **columns}), len(times))
        assert together.tolist() == [evaluate(component.formula, {**answer.sizes, **point}) for point in points]


def _replicated(name: str) -> int:
    """Parameters that each tensor-parallel rank has whole: norms, biases of row-parallel layers, positions, routers."""
    hidden = 256
    of_block = {"dense": 2 * hidden, "tied": 2 * hidden, "experts": 2 * hidden + 8 * hidden, "gpt2": 6 * hidden}
    outside = {"dense": hidden, "tied": hidden, "experts": hidden, "gpt2": (2 + 2048) * hidden}
    return LAYERS * of_block[name] + outside[name]


@pytest.mark.parametrize("name", ["dense", "tied", "experts", "gpt2"])
@pytest.mark.parametrize("pipeline", [1, 2, 4])
@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("experts", [1, 4])
def test_weights_of_all_ranks_are_the_model_once(name: str, pipeline: int, tensor: int, experts: int) -> None:
    """Data-parallel ranks are as many as split the experts, so that each expert is there once; what tensor-parallel
    ranks have whole is there once for each of them, and a tied embedding on the first and the last stage.
    """
    if name != "experts" and experts > 1:
        return
    layout = Parallelism(
        data_parallel_size=experts,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        expert_parallel_size=experts,
    )
    ranks = stages_of((MODELS[name], Training(framework="megatron"), layout))
    dense = sum(sizes["parameters_on_rank"] for _, _, sizes in ranks) * tensor
    routed = sum(sizes["expert_parameters_on_rank"] for _, _, sizes in ranks) * tensor * experts
    twice = 4096 * 256 if name in ("tied", "gpt2") and pipeline > 1 else 0
    assert dense + routed == MODELS[name].parameters + (tensor - 1) * _replicated(name) + twice


def test_megatron_pads_the_vocabulary_for_its_ranks() -> None:
    """To a multiple of 128 × ranks: 1,000 words are 1,024 on four ranks, twice as the head is not tied."""
    odd = from_config({**DENSE, "vocab_size": 1000})
    layout = Parallelism(tensor_parallel_size=4)
    ((_, _, padded),) = stages_of((odd, Training(framework="megatron"), layout))
    assert padded["vocab_size_per_rank"] == 256
    ((_, _, plain),) = stages_of((odd, Training(), layout))
    assert plain["vocab_size_per_rank"] == 250
    assert padded["parameters_on_rank"] - plain["parameters_on_rank"] == 2 * 6 * 256


@pytest.mark.parametrize("framework", sorted(STAGES_OF_ZERO))
@pytest.mark.parametrize("tensor", [1, 4])
@pytest.mark.parametrize("pipeline", [1, 4])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_higher_zero_stage_never_needs_more(framework: str, tensor: int, pipeline: int, recompute: str) -> None:
    training = Training.model_validate(
        {"framework": framework, "recompute": recompute, "gradient_accumulation_steps": 8}
    )
    found = [
        ask(
            LLAMA_8B,
            training,
            Parallelism(
                data_parallel_size=8,
                zero_stage=stage,
                tensor_parallel_size=tensor,
                pipeline_parallel_size=pipeline,
            ),
        )
        for stage in STAGES_OF_ZERO[framework]
    ]
    held = [each.per_gpu.weights_bytes + each.per_gpu.optimizer_states_bytes for each in found]
    assert held == sorted(held, reverse=True)
    if framework != "deepspeed":  # whose stages 1 to 3 need buckets of 1 GB and more, which small shards feel
        needed = [each.per_gpu.total_bytes for each in found]
        assert needed == sorted(needed, reverse=True)


@pytest.mark.parametrize("framework", ["megatron", "nanotron", "torchtitan"])
@pytest.mark.parametrize("name", ["dense", "experts", "gpt2"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_more_tensor_parallel_ranks_with_sequence_parallelism_keep_less(
    framework: str, name: str, recompute: str
) -> None:
    training = Training.model_validate(
        {"framework": framework, "recompute": recompute, "sequence_length": 2048, "micro_batch_size": 2}
    )
    kept = [
        activations_after_forward(
            (MODELS[name], training, Parallelism(tensor_parallel_size=size, sequence_parallel=size > 1))
        )[0]
        for size in (1, 2, 4)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0]


@pytest.mark.parametrize("framework", sorted(STAGES_OF_ZERO))
def test_context_parallel_ranks_keep_their_part_of_the_sequence(framework: str) -> None:
    training = Training.model_validate({"framework": framework, "sequence_length": 8192})
    kept = [
        activations_after_forward((LLAMA_8B, training, Parallelism(context_parallel_size=size)))[0]
        for size in (1, 2, 4)
    ]
    casts = 2 * LLAMA_8B.parameters if framework in ("transformers", "torchtitan") else 0
    assert kept[0] - casts == pytest.approx(2 * (kept[1] - casts), rel=0.05)
    assert kept[1] - casts == pytest.approx(2 * (kept[2] - casts), rel=0.05)


@pytest.mark.parametrize("pipeline", [2, 4, 8])
@pytest.mark.parametrize("micro_batches", [2, 4, 16, 64])
def test_schedules_hold_less_in_the_order_of_their_names(pipeline: int, micro_batches: int) -> None:
    """The rank that holds most, of LAYERS × 2 layers: gpipe ≥ 1f1b ≥ v-half ≥ v-min, and zb-h2 ≥ 1f1b = zb-h1."""
    model = from_config({**DENSE, "num_hidden_layers": 2 * LAYERS})
    training = Training(framework="megatron", gradient_accumulation_steps=micro_batches)
    held = {
        schedule: max(
            sum(part.running + part.waiting for part in stage.parts if part.held)
            for stage in blocks_of(model, training, pipeline, schedule)
        )
        for schedule in (*ONE_CHUNK, "zb-h1")
    }
    assert held["gpipe"] >= held["1f1b"] >= held["v-half"] >= held["v-min"]
    assert held["zb-h2"] >= held["1f1b"] == held["zb-h1"] == held["zero-bubble"]
    assert held["1f1b"] >= held["zb-v"] >= held["v-half"]


def blocks_of(model: Architecture, training: Training, pipeline: int, schedule: Any) -> tuple[Any, ...]:
    """The stages of a pipeline, layers only."""
    layout = Parallelism(pipeline_parallel_size=pipeline, pipeline_schedule=schedule)
    recipe = resolve(training, layout, model)
    return tuple(
        replace(stage, parts=tuple(part for part in stage.parts if part.segment == 1))
        for stage in stages(recipe.split, (1, model.sizes["num_hidden_layers"], 1), (False, True, False))
    )


@pytest.mark.parametrize("framework", sorted(STAGES_OF_ZERO))
@pytest.mark.parametrize("name", ["dense", "experts", "gpt2"])
def test_twice_the_layers_are_twice_the_bytes_of_layers(framework: str, name: str) -> None:
    """Weights, states and activations grow by the same amount with every four layers."""
    config = {"dense": DENSE, "experts": EXPERTS, "gpt2": GPT2}[name]
    training = Training.model_validate({"framework": framework, "sequence_length": 512})
    layers = "n_layer" if name == "gpt2" else "num_hidden_layers"
    held = []
    for count in (4, 8, 12):
        ((recipe, segments, sizes),) = stages_of((from_config({**config, layers: count}), training, Parallelism()))
        (end,) = [moment for moment in step_moments(recipe.rules, segments) if moment.label == "end of forward"]
        held.append(
            {
                group: sum(term.bytes.evaluate(sizes) for term in end.terms if term.group == group)
                for group in ("weights", "optimizer_states", "activations")
            }
        )
    for group in held[0]:
        assert held[2][group] - held[1][group] == held[1][group] - held[0][group] > 0


@pytest.mark.parametrize("framework", sorted(STAGES_OF_ZERO))
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recomputing_more_keeps_less(framework: str, name: str, attention: str) -> None:
    if framework == "nanotron" and name in ("bert", "t5"):
        pytest.skip("nanotron trains decoders only")
    sized = {"framework": framework, "sequence_length": 1024, "micro_batch_size": 4, "attention": attention}
    asked = [Training.model_validate({**sized, "recompute": what}) for what in ("none", "selective", "full")]
    kept = [activations_after_forward((MODELS[name], training, Parallelism()))[0] for training in asked]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0]
    needed = [ask(MODELS[name], training).per_gpu.total_bytes for training in asked]
    assert needed == sorted(needed, reverse=True)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("targets", ["all-linear", None])
@pytest.mark.parametrize("rank", [1, 16])
def test_adapters_are_all_that_is_trained(name: str, targets: Any, rank: int) -> None:
    model, lora = MODELS[name], Lora(rank=rank, target_modules=targets)
    training = Training(method="lora", lora=lora, precision="bf16-mixed", optimizer_implementation="fused")
    trained = adapters(model, lora).parameters
    answer = ask(model, training)
    ((_, _, sizes),) = stages_of((model, training, Parallelism()))
    assert sizes["trainable_parameters_on_rank"] == trained == answer.model.trainable_parameters
    assert answer.per_gpu.optimizer_states_bytes == 8 * trained
    assert answer.per_gpu.weights_bytes == 2 * model.parameters + 4 * trained
    assert answer.per_gpu.gradients_bytes <= 4 * trained


@pytest.mark.parametrize("length", [512, 8192])
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("layout", [{}, {"data_parallel_size": 8, "zero_stage": 3}], ids=["one", "fsdp"])
def test_quantized_bases_need_less_than_adapters_and_these_less_than_all(
    length: int, recompute: str, layout: dict[str, int]
) -> None:
    sized = {"sequence_length": length, "recompute": recompute}
    needed = [
        ask(LLAMA_8B, Training.model_validate({**sized, "method": method}), Parallelism.model_validate(layout))
        for method in ("qlora", "lora", "full")
    ]
    totals = [answer.per_gpu.total_bytes for answer in needed]
    assert totals == sorted(totals)
    assert totals[0] < totals[1] < totals[2]


@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize(
    ("framework", "offloads"),
    [
        ("transformers", ("none", "optimizer", "optimizer+parameters")),
        ("deepspeed", ("none", "optimizer", "optimizer+parameters")),
        ("torchtitan", ("none", "optimizer+parameters")),
    ],
)
def test_offloading_moves_bytes_to_the_host_and_adds_none(
    framework: str, offloads: tuple[str, ...], ranks: int
) -> None:
    found = [
        ask(
            LLAMA_8B,
            Training.model_validate({"framework": framework}),
            Parallelism.model_validate({"data_parallel_size": ranks, "zero_stage": 3, "offload": offload}),
        )
        for offload in offloads
    ]
    needed = [answer.per_gpu.total_bytes for answer in found]
    assert needed == sorted(needed, reverse=True)
    kept = [answer.per_gpu.weights_bytes + answer.per_gpu.optimizer_states_bytes for answer in found]
    on_host = [
        sum(part.bytes for part in answer.host.components if part.group in ("weights", "optimizer_states"))
        for answer in found
    ]
    assert kept[-1] == on_host[0] == 0
    assert [gpu + host for gpu, host in zip(kept, on_host, strict=True)] == [kept[0]] * len(found)
    assert all(answer.host.per_rank_bytes > host for answer, host in zip(found[1:], on_host[1:], strict=True))


@pytest.mark.parametrize("framework", sorted(STAGES_OF_ZERO))
@pytest.mark.parametrize("name", ["dense", "gpt2"])
def test_freezing_more_layers_never_needs_more(framework: str, name: str) -> None:
    sized = {"framework": framework, "sequence_length": 512, "micro_batch_size": 4}
    found = [ask(MODELS[name], Training.model_validate({**sized, "frozen_layers": layers})) for layers in range(LAYERS)]
    for group in ("total_bytes", "optimizer_states_bytes"):
        needed = [getattr(answer.per_gpu, group) for answer in found]
        assert needed == sorted(needed, reverse=True)
        assert needed[-1] < needed[0]


@pytest.mark.parametrize("framework", sorted(STAGES_OF_ZERO))
@pytest.mark.parametrize("method", ["full", "lora"])
def test_compiling_keeps_no_more(framework: str, method: str) -> None:
    for name in ("dense", "gpt2", "experts"):
        for recompute in ("none", "selective", "full"):
            sized = {"framework": framework, "method": method, "recompute": recompute, "sequence_length": 2048}
            asked = [Training.model_validate({**sized, "compile": compiled}) for compiled in (True, False)]
            compiled, plain = (activations_after_forward((MODELS[name], one, Parallelism()))[0] for one in asked)
            assert compiled <= plain, (name, recompute)


@pytest.mark.parametrize(
    ("name", "training", "layout"),
    [
        pytest.param("t5", {}, {"context_parallel_size": 2}, id="keys of T5"),
        pytest.param("t5", {"framework": "nanotron"}, {"pipeline_parallel_size": 2}, id="T5 in nanotron"),
        pytest.param(
            "dense",
            {"framework": "nanotron"},
            {"pipeline_parallel_size": 2, "pipeline_schedule": "v-half"},
            id="V of nanotron",
        ),
        pytest.param(
            "dense",
            {},
            {"pipeline_parallel_size": 2, "pipeline_schedule": "v-half", "layers_per_stage": (6, 2)},
            id="uneven V",
        ),
    ],
)
def test_unusual_requests_are_answered_or_refused(name: str, training: dict[str, Any], layout: dict[str, Any]) -> None:
    try:
        answer = ask(MODELS[name], Training.model_validate(training), Parallelism.model_validate(layout))
    except InvalidInput:
        return
    assert all(component.bytes > 0 for component in answer.components)


@pytest.mark.parametrize("recompute_layers", [None, 1, 2, 3])
@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("schedule", [None, "gpipe", "zb-h2", "v-half", "dualpipe"])
def test_no_moment_holds_less_than_nothing(recompute_layers: int | None, chunks: int, schedule: Any) -> None:
    if chunks > 1 and schedule is not None:
        pytest.skip("chunks of one schedule only")
    layout = Parallelism(pipeline_parallel_size=2, virtual_pipeline_size=chunks, pipeline_schedule=schedule)
    training = Training(recompute="full", recompute_layers=recompute_layers, gradient_accumulation_steps=4)
    for _, segments, sizes in stages_of((MODELS["dense"], training, layout)):
        for moment in moments(segments):
            gradients = (moment.finished_gradients, moment.own_gradients, moment.fresh_gradients)
            for amount in (*moment.saved.values(), moment.weight_casts, moment.transient, *gradients):
                assert amount.evaluate(sizes) >= 0, moment.label
