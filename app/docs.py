"""Writes the generated pages of `docs/`: `python -m app.docs`. With `--check`, only says whether they are in step."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from app import catalog
from app.planning import coverage, overheads, peaks, rule_of_thumb, sources, states
from app.planning.architecture import Architecture
from app.planning.families import FAMILIES
from app.planning.ledger import Segment
from app.planning.optimizers import OptimizerStates, Trained, states_of
from app.planning.passing import in_passing
from app.planning.pipeline import Stage, stages
from app.planning.recipe import Recipe, resolve
from app.planning.scaling_laws import LAWS, SAME_LOSS_FLOPS, SIX_ND, TOKENS_FOR_LOSS, Law
from app.planning.scaling_search import EFFECTIVE, EXCESS_PARAMETERS_STAR, REPEATED_TOKENS_STAR
from app.planning.sizes import Size, named
from app.planning.specs import BaseFormat, Framework, Optimizer, Parallelism, PipelineSchedule, Training
from app.planning.term import Term
from app.planning.timeline import casts_of, kept_after_forward
from app.settings import Settings
from app.sources import Source
from app.units import MIB

FOLDER = Path("docs")

_INTRODUCTION = (
    "Generated from the code by `python -m app.docs`: these are the formulas that make the numbers, as an answer "
    "prints them. Names are those of the request and of a model's `config.json`. A size that a layout divides has the "
    "name of its part: `…_per_rank` is what tensor, context or expert parallelism leaves to one rank, `…_shard` what "
    "sequence parallelism leaves of that. `parameters_on_rank` and `trainable_parameters_on_rank` are a rank's own "
    "after tensor, pipeline and expert parallelism; `sharding_group_size` is over how many ranks ZeRO or FSDP shards "
    "them. `buffer_padding_on_rank` is what Megatron's distributed optimizer adds so that tensors begin at multiples "
    "of 64 elements and buffers end at multiples of 128 and the ranks; `persistent_parameters_on_rank` counts weights "
    "up to DeepSpeed's `stage3_param_persistence_threshold`. `ceil_div(a, b)` rounds up; `reaches(a, b)` is 1 where a "
    "is at least b, else 0. Bytes unless said otherwise."
)

_Request = Mapping[str, Any]

_LLAMA = "meta-llama/Llama-3.1-8B"
_MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"
_SHOWN_MODELS = (_LLAMA, "Qwen/Qwen2.5-7B", "openai-community/gpt2", _MIXTRAL)

_MEGATRON: _Request = {"framework": "megatron", "precision": "bf16-mixed"}
_TENSOR: _Request = {"tensor_parallel_size": 2}
_SEQUENCE: _Request = {**_TENSOR, "sequence_parallel": True}

_BLOCKS: tuple[tuple[str, str, _Request, _Request], ...] = (
    ("Hugging Face code, 16-bit weights (DeepSpeed, FSDP)", _LLAMA, {"precision": "bf16"}, {}),
    ("Hugging Face code, autocast over FP32 weights", _LLAMA, {"precision": "bf16-mixed"}, {}),
    ("Hugging Face code, eager attention", _LLAMA, {"precision": "bf16", "attention": "eager"}, {}),
    ("Hugging Face code, sdpa, packed", _LLAMA, {"precision": "bf16", "attention": "sdpa", "packing": True}, {}),
    ("Hugging Face code with Liger's kernels", _LLAMA, {"precision": "bf16", "use_liger_kernel": True}, {}),
    ("Hugging Face code, compiled", _LLAMA, {"precision": "bf16", "compile": True}, {}),
    ("Hugging Face code, adapters beside frozen 16-bit weights", _LLAMA, {"method": "lora"}, {}),
    ("Megatron's fused kernels", _LLAMA, _MEGATRON, {}),
    ("Megatron with FP8 matrix products", _LLAMA, {**_MEGATRON, "precision": "fp8-mixed"}, {}),
    ("Megatron, tensor parallel", _LLAMA, _MEGATRON, _TENSOR),
    ("Megatron, tensor and sequence parallel", _LLAMA, _MEGATRON, _SEQUENCE),
    ("Megatron, tensor, sequence and context parallel", _LLAMA, _MEGATRON, {**_SEQUENCE, "context_parallel_size": 2}),
    ("nanotron, tensor and sequence parallel", _LLAMA, {"framework": "nanotron"}, _SEQUENCE),
    ("torchtitan, tensor parallel (which brings sequence parallel)", _LLAMA, {"framework": "torchtitan"}, _TENSOR),
    ("Megatron, experts whole on every rank", _MIXTRAL, _MEGATRON, {"data_parallel_size": 2}),
    (
        "Megatron, expert parallel",
        _MIXTRAL,
        _MEGATRON,
        {"data_parallel_size": 2, "expert_parallel_size": 2},
    ),
)
"""What a block keeps: title, model, training, parallelism."""

_RECOMPUTED: tuple[tuple[str, _Request], ...] = (
    ("full", {**_MEGATRON, "recompute": "full"}),
    ("selective: the attention core", {**_MEGATRON, "recompute": "selective"}),
    ("selective: MLP", {**_MEGATRON, "recompute": "selective", "recompute_modules": ["mlp"]}),
    ("selective: norms", {**_MEGATRON, "recompute": "selective", "recompute_modules": ["layernorm"]}),
    ("torchtitan's selective: by operator", {"framework": "torchtitan", "recompute": "selective"}),
)

_STAGES_OF_ZERO: dict[Framework, tuple[int, ...]] = {
    "transformers": (0, 1, 2, 3),
    "deepspeed": (0, 1, 2, 3),
    "megatron": (0, 1, 3),
    "nanotron": (0, 1),
    "torchtitan": (0, 2, 3),
}

_STATES: tuple[tuple[str, _Request, _Request], ...] = (
    *(
        (
            f"{framework}, bf16-mixed, ZeRO stage {stage}",
            {"framework": framework, "precision": "bf16-mixed"},
            {"data_parallel_size": 2, "zero_stage": stage},
        )
        for framework, its_stages in _STAGES_OF_ZERO.items()
        for stage in its_stages
    ),
    ("transformers, everything in bf16, one GPU", {"precision": "bf16"}, {}),
    ("transformers, adapters of LoRA, one GPU", {"method": "lora"}, {}),
    ("transformers, QLoRA, one GPU", {"method": "qlora", "optimizer": "paged-adamw-8bit"}, {}),
)

_FIRST_STEP = (
    "Most optimizers make their states in the first step, so that its forward and backward run without them: `first "
    "step` among `moments`, where that is less than later steps need. DeepSpeed, and torch's Adagrad and Shampoo, make "
    "them before. Loading a checkpoint is no part of a step."
)

_OFFLOADED: tuple[tuple[str, _Request, _Request], ...] = tuple(
    (
        f"{framework}, ZeRO stage {stage}, offload {offload}",
        {"framework": framework, "precision": "bf16-mixed"},
        {"data_parallel_size": 2, "zero_stage": stage, "offload": offload},
    )
    for framework, stage, offload in (
        ("deepspeed", 2, "optimizer"),
        ("deepspeed", 3, "optimizer"),
        ("deepspeed", 3, "optimizer+parameters"),
        ("transformers", 3, "optimizer+parameters"),
    )
)

_PASSING: tuple[tuple[str, _Request, _Request], ...] = (
    *(
        (
            f"{framework}, ZeRO stage {stage}",
            {"framework": framework, "gradient_accumulation_steps": 2},
            {"data_parallel_size": 4, "zero_stage": stage},
        )
        for framework, its_stages in _STAGES_OF_ZERO.items()
        for stage in its_stages
    ),
    ("transformers, hybrid sharding", {}, {"data_parallel_size": 4, "zero_stage": 3, "sharding_group_size": 2}),
    ("nanotron, tensor and sequence parallel", {"framework": "nanotron"}, _SEQUENCE),
    ("megatron, pipeline stages", _MEGATRON, {"pipeline_parallel_size": 4}),
    ("megatron, context parallel", _MEGATRON, {"context_parallel_size": 2}),
)

_PIPELINE_STAGES, _PIPELINE_MICRO_BATCHES = 4, 8

_MATRIX = Trained(named("rows") * named("columns"), rows=named("rows"), columns=named("columns"))
_MATRIX_SIZES = {"rows": 4096, "columns": 14336, "parameters_of_a_block": 4096 * 14336}
_LONGEST_FORMULA = 100
_QUANTIZED: tuple[BaseFormat, ...] = ("nf4", "nf4-double", "int4", "int8", "fp8")


def formulas() -> str:
    """Every term of a memory estimate and every law of scaling, as answers print them, with their sources."""
    parts = [
        "# Formulas",
        _INTRODUCTION,
        "## Rule of thumb",
        _table(("part", "FP32 bytes"), ((group, size) for group, size, _ in rule_of_thumb.terms("fp32"))),
        "## Parameters",
        *(part for id in _SHOWN_MODELS for part in (f"### {id}", _parameters(_model(id)))),
        "## What a block keeps for backward",
        *(part for title, id, one, other in _BLOCKS for part in (f"### {title}", _kept(id, one, other))),
        "## What of it recomputation leaves",
        "Of a block of Llama-3.1-8B; backward makes the rest again, one block at a time.",
        *(part for title, training in _RECOMPUTED for part in (f"### {title}", _kept(_LLAMA, training, {}))),
        "## What pipeline stages keep",
        _pipeline(),
        "## Model states and the optimizer step",
        _FIRST_STEP,
        *(part for title, *request in _STATES for part in (f"### {title}", _step(*request))),
        "## Quantized weights",
        "A frozen weight of `elements`, with its scales. QLoRA quantizes the linear layers of the blocks.",
        _table(
            ("format", "bytes"),
            ((format, states.stored_bytes(named("elements"), format)) for format in _QUANTIZED),
        ),
        "## Optimizers",
        _optimizers(),
        "## Buffers in passing",
        "While a block of Llama-3.1-8B runs backward, beside what is kept and the gradients of activations.",
        _table(
            ("layout", "part", "bytes", "source"),
            (
                (title, term.name, term.bytes, _link(term.source))
                for title, training, parallelism in _PASSING
                for term in _in_passing(training, parallelism)
            ),
        ),
        "## Host memory",
        "What one rank keeps there instead of on its GPU.",
        _table(
            ("layout", "part", "bytes", "source"),
            (
                (title, term.name, term.bytes, _link(term.source))
                for title, training, parallelism in _OFFLOADED
                for term in _on_host(training, parallelism)
            ),
        ),
        "## The moment of the loss",
        "Fully sharded Llama with autocast off, as FSDP runs it; backward has just made the gradient of the logits.",
        _loss(),
        "## Outside the allocator",
        "On an H100, for a rank in two kinds of groups.",
        _outside(),
        "## Allocator slack and upper bound",
        _upper_bound(),
        "## Compute-optimal training",
        _scaling(),
        "## Sources",
        "\n".join(f"- {_link(source)}: {source.where}" for source in _all_sources()),
    ]
    return "\n\n".join(parts) + "\n"


def _upper_bound() -> str:
    frameworks = get_args(Framework)
    table = _table(
        ("framework", "reserved beyond allocated, expected", "beyond the expected allocation, upper bound"),
        (
            (name, f"{overheads.ALLOCATOR_SLACK_PERCENT[name]} %", f"{overheads.UPPER_SLACK_PERCENT[name]} %")
            for name in frameworks
        ),
    )
    return (
        f"`cuda_context` is that of data-centre GPUs; of cards with at most 48 warps per SM it is "
        f"`{overheads.NARROW_CONTEXT_BYTES_PER_SM} * streaming_multiprocessors`. Readings are too few to tell versions "
        "of CUDA apart.\n\n"
        "Beside the slack, `other_phase` is what the phase that is not the peak needs and the other's blocks have no "
        "room for.\n\n"
        f"{table}\n\n"
        f"`upper_bound_bytes` is the larger of `total_bytes` and: the expected allocation with the percentage of the "
        f"right column, {overheads.UPPER_SHARDED_PERCENT} % more of it where FSDP gathers weights; the terms above; "
        f"{overheads.UPPER_FIXED_BYTES // MIB} MiB for kernels loaded on the way, and "
        f"{overheads.UPPER_COMMUNICATOR_BYTES // MIB} MiB for each communicator. Under nanotron with sequence "
        f"parallelism it is the larger of the bounds with and without `tp_recompute_allgather`. How far readings of "
        f"real runs lie from both figures is in [accuracy.md](accuracy.md).\n\n"
        f"That is calibrated on published runs, and holds where such runs were. `coverage.py` takes a request apart "
        f"into features, the fields that decide which memory a step holds, and [accuracy.md](accuracy.md) has for each "
        f"the runs and traced steps that hold it. Where a request has features that fewer than {coverage.LEAST_RUNS} "
        f"of them hold, a warning names them and the bound is wider, once for each line that applies:\n\n"
        f"{_uncovered()}\n\n"
        f"A family whose activations no traced step verifies counts as the first line. Where the bound held for fewer "
        f"than {coverage.LEAST_HELD_PERCENT} % of the runs with a feature, it is wider by the percentage of the "
        f"expected allocation that the table in accuracy.md gives, and a warning says so."
    )


def _uncovered() -> str:
    """What each kind of feature widens the bound by."""
    allowed: Mapping[coverage.Change, str] = {
        "activations": f"{overheads.UNCOVERED_MOVING_PERCENT} % of activations and temporary memory",
        "states": f"{overheads.UNCOVERED_STATES_PERCENT} % of weights, gradients and states, at least of gradients",
        "step": "the gradients once more",
        "gpu": f"{overheads.UNCOVERED_GPU_BYTES // MIB} MiB",
    }
    return _table(
        ("features", "the bound allows for, beyond that"),
        (
            (", ".join(f"`{field}`" for field, its in coverage.CHANGES.items() if its == change), allowance)
            for change, allowance in allowed.items()
        ),
    )


def settings() -> str:
    """Every setting of the service with its default and meaning."""
    rows = (
        (
            f"`TONNAGE_{name.upper()}`",
            f"`{field.default}`" if field.default not in (None, ()) else "",
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    )
    head = (
        "# Settings\n\nGenerated from the code by `python -m app.docs`. The service reads these environment "
        "variables; a secret may come from a file named by the same variable with `_FILE` behind it. An unknown "
        "`TONNAGE_` variable stops the start.\n\n"
    )
    return head + _table(("variable", "default", "meaning"), rows) + "\n"


def families() -> str:
    """Every model family that is served, by kind of transformer."""
    parts = [
        "# Model families",
        (
            "Generated from the code by `python -m app.docs`. A `config.json` with one of these model types and "
            "classes is counted exactly, as the class in transformers 5.23 holds it; any other is refused, with the "
            "nearest one named."
        ),
    ]
    for kind in ("decoder-only", "encoder-only", "encoder-decoder"):
        members = sorted((family for family in FAMILIES.values() if family.family == kind), key=lambda f: f.model_type)
        rows = (
            (
                f"`{family.model_type}`",
                f"`{family.class_name}`",
                family.pretraining_objective,
                "yes" if family.model_type in overheads.VERIFIED_FAMILIES else "",
            )
            for family in members
        )
        head = (
            "model_type",
            "class",
            "pre-training objective",
            "activations compared with traced steps, its own or of its block",
        )
        parts += [f"## {kind.capitalize()}: {len(members)}", _table(head, rows)]
    return "\n\n".join(parts) + "\n"


PAGES = {"formulas.md": formulas, "families.md": families, "settings.md": settings}


def main(arguments: list[str]) -> int:
    """Writes the pages, or with `--check` returns 1 when one is out of step."""
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path))
    if stale:
        sys.stderr.write(f"out of step with the code: {', '.join(stale)}; run python -m app.docs\n")
    return 1 if stale else 0


def _model(id: str) -> Architecture:
    return catalog.load().model(id).architecture


def _recipe(model: Architecture, training: _Request, parallelism: _Request) -> Recipe:
    return resolve(Training.model_validate(training), Parallelism.model_validate(parallelism), model)


def _block(segments: tuple[Segment, ...]) -> Segment:
    (block,) = [segment for segment in segments if segment.block]
    return block


def _parameters(model: Architecture) -> str:
    return _table(("component", "parameters"), ((count.name, f"`{count.formula}`") for count in model.components))


def _kept(id: str, training: _Request, parallelism: _Request) -> str:
    model = _model(id)
    block = _block(peaks.segments_of(_recipe(model, training, parallelism), model, None))
    casts = Size({}) if block.recompute in ("full", "operators") else casts_of(block)
    rows: list[tuple[str, Size]] = [*kept_after_forward(block).items()]
    return _table(("component", "bytes per block"), [*rows, *([("copies of weights", casts)] if casts else [])])


def _pipeline() -> str:
    """How many layers' activations each rank holds under each schedule, and how a stage's formulas name them."""
    model = _model(_LLAMA)
    rows = []
    for schedule in get_args(PipelineSchedule):
        chunks = 2 if schedule == "interleaved-1f1b" else 1
        ranks = _ranks_of(model, {"pipeline_schedule": schedule, "virtual_pipeline_size": chunks})
        layers = [[part for part in rank.parts if part.held > 1] for rank in ranks]
        held = max(sum(part.held for part in parts) for parts in layers)
        title = f"{schedule}, 2 chunks" if chunks > 1 else schedule
        rows.append((title, held, *(sum(part.running + part.waiting for part in parts) for parts in layers)))
    recipe = _recipe(model, _MEGATRON, {"pipeline_parallel_size": _PIPELINE_STAGES})
    first = peaks.segments_of(recipe, model, _ranks_of(model, {})[0])
    end_of_forward = peaks.step_moments(recipe.rules, first)[0]
    formulas = [(term.name, term.bytes) for term in end_of_forward.terms if term.group == "activations" and term.bytes]
    head = ("schedule", "layers held", *(f"rank {rank}" for rank in range(_PIPELINE_STAGES)))
    return (
        f"Llama-3.1-8B's {model.sizes['num_hidden_layers']} layers on {_PIPELINE_STAGES} ranks, "
        f"{_PIPELINE_MICRO_BATCHES} micro batches: layers of which a rank holds the weights, and how many times a "
        f"layer's activations it keeps where most wait for backward.\n\n"
        f"{_table(head, rows)}\n\n"
        f"A stage's formulas count them as `layers_running_n`, whose backward comes first, and `layers_waiting_n`, of "
        f"other micro batches; `layers_held_n` are those whose weights it has, and `chunks` of each entry of "
        f"`pipeline_stages` says the same chunk by chunk. The first stage under Megatron's 1F1B, "
        f"at the end of forward:\n\n"
        f"{_table(('part', 'bytes'), formulas)}"
    )


def _ranks_of(model: Architecture, parallelism: _Request) -> tuple[Stage, ...]:
    """The ranks of a pipeline of Llama's layers between its embedding and its head."""
    training = {**_MEGATRON, "gradient_accumulation_steps": _PIPELINE_MICRO_BATCHES}
    recipe = _recipe(model, training, {"pipeline_parallel_size": _PIPELINE_STAGES, **parallelism})
    ledger = model.ledger(recipe.rules.kernels)
    counts = tuple(segment.repeats.evaluate(model.sizes) for segment in ledger)
    return stages(recipe.split, counts, tuple(segment.layer for segment in ledger))


def _step(training: _Request, parallelism: _Request) -> str:
    """Everything held while the optimizer steps, weights as one row for each format."""
    model = _model(_LLAMA)
    rules = (recipe := _recipe(model, training, parallelism)).rules
    moment = peaks.step_moments(rules, peaks.segments_of(recipe, model, None))[-1]
    rows: list[tuple[str, object, str]] = []
    whole = {f"weights.{count.name}" for count in model.components}
    if any(term.name in whole for term in moment.terms):
        own = states.PARAMETERS * states.element_bytes(rules.precision.parameters)
        rows.append(("weights", own, _link(sources.TENSOR_SIZE)))
    rows += [(term.name, _short(term.bytes), _link(term.source)) for term in moment.terms if term.name not in whole]
    return _table(("part", "bytes", "source"), [row for row in rows if row[1]])


def _in_passing(training: _Request, parallelism: _Request) -> list[Term]:
    model = _model(_LLAMA)
    recipe = _recipe(model, training, parallelism)
    segments = peaks.segments_of(recipe, model, None)
    return in_passing(recipe.rules, segments, _block(segments), backward=True)


def _on_host(training: _Request, parallelism: _Request) -> list[Term]:
    model = _model(_LLAMA)
    recipe = _recipe(model, training, parallelism)
    return [term for term in states.host_bytes(recipe.rules, peaks.segments_of(recipe, model, None)) if term.bytes]


def _optimizers() -> str:
    """States and scratch of one matrix under each optimizer."""
    rows = []
    for optimizer in get_args(Optimizer):
        foreach, fused = (_states_of_matrix(optimizer, implementation) for implementation in ("foreach", "fused"))
        rows.append(
            (
                f"`{optimizer}`",
                _short(foreach.bytes),
                _per_parameter(foreach.bytes),
                _per_parameter(foreach.evictable),
                _per_parameter(foreach.step_scratch),
                _per_parameter(fused.step_scratch),
                {"all": "all", "largest": "one tensor's", "block": "one block's"}[foreach.gradients],
                _link(foreach.source),
            )
        )
    head = (
        "optimizer",
        "states",
        "per parameter",
        "of these pageable",
        "step, `foreach`",
        "step, `fused`",
        "gradients at once",
        "source",
    )
    rows_of, columns_of = _MATRIX_SIZES["rows"], _MATRIX_SIZES["columns"]
    return (
        f"Bytes for one FP32 matrix of `rows` × `columns`, and bytes per parameter for {rows_of} × {columns_of} (of "
        f"BAdam as if it were the block). Embeddings, vectors and small tensors have rules of their own in some; the "
        f"scratch of optimizers that go tensor by tensor is that of the largest one.\n\n{_table(head, rows)}"
    )


def _states_of_matrix(optimizer: Optimizer, implementation: Any) -> OptimizerStates:
    return states_of(optimizer, implementation, [_MATRIX], state_bytes=4, block=named("parameters_of_a_block"))


def _per_parameter(amount: Size) -> str:
    elements = _MATRIX_SIZES["rows"] * _MATRIX_SIZES["columns"]
    return f"{amount.evaluate(_MATRIX_SIZES) / elements:.3f}".rstrip("0").rstrip(".")


def _loss() -> str:
    model = _model(_LLAMA)
    recipe = _recipe(model, {"precision": "bf16-mixed"}, {"data_parallel_size": 8, "zero_stage": 3})
    moments = peaks.step_moments(recipe.rules, peaks.segments_of(recipe, model, None))
    loss = next(moment for moment in moments if moment.label == "lm_head.log_softmax")
    rows = ((term.name, term.bytes, _link(term.source)) for term in loss.terms if term.bytes)
    return _table(("part", "bytes", "source"), rows)


def _outside() -> str:
    rows: dict[tuple[str, Size, str], list[str]] = {}
    for framework in get_args(Framework):
        for term in overheads.expected(None, framework, 2, deterministic=False, experts=False):
            rows.setdefault((term.name, term.bytes, _link(term.source)), []).append(framework)
    everywhere = len(get_args(Framework))
    return _table(
        ("part", "framework", "bytes", "source"),
        (
            (name, "all" if len(whose) == everywhere else ", ".join(whose), size, source)
            for (name, size, source), whose in sorted(rows.items(), key=lambda row: row[0][0])
        ),
    )


def _scaling() -> str:
    laws = _table(
        ("`law`", "counts", "parameters", "tokens", "loss", "constants", "fitted to", "source"),
        (
            (
                f"`{law.key}`",
                law.counts,
                f"`{law.parameters}`",
                f"`{law.tokens}`",
                f"`{law.loss}`" if law.loss else "none",
                ", ".join(f"{name} {value:.10g}" for name, value in law.constants.items()),
                _fitted(law),
                _link(law.source),
            )
            for law in LAWS.values()
        ),
    )
    notes = "\n".join(f"- `{law.key}`: {law.note}." for law in LAWS.values())
    return (
        "Each law's formulas over its constants and `flops`, the operations of training; loss in nats per token. All "
        f"but DeepSeek's count `{SIX_ND.partition(':')[0]}`, without attention scores; a model of a request is counted "
        f"operation by operation beside.\n\n{laws}\n\n{notes}\n\nThe fewest operations to the same loss are "
        f"`{SAME_LOSS_FLOPS}`; the tokens after which a model reaches it `{TOKENS_FOR_LOSS}`. Where only `unique` of "
        f"an `amount` of tokens or parameters is not repetition, it is worth `{EFFECTIVE}`, with `star` "
        f"{REPEATED_TOKENS_STAR} for tokens and {EXCESS_PARAMETERS_STAR} for parameters."
    )


def _fitted(law: Law) -> str:
    spans = {field.name: getattr(law.fitted, field.name) for field in fields(law.fitted)}
    return ", ".join(f"{span[0]:g} to {span[1]:g} {name}" for name, span in spans.items() if span is not None)


def _short(amount: Size) -> Size | str:
    """The formula, unless nobody would read it."""
    return amount if len(str(amount)) <= _LONGEST_FORMULA else "by each tensor's shape"


def _all_sources() -> list[Source]:
    return [value for value in vars(sources).values() if isinstance(value, Source)]


def _link(source: Source) -> str:
    return f"[{source.title}]({source.url})"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = (
            f"`{cell}`" if isinstance(cell, Size) else str(cell).replace("|", "\\|").replace("\n", " ") for cell in row
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
