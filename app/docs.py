"""Writes the generated pages of `docs/`: `python -m app.docs`. With `--check`, only says whether they are in step."""

import sys
from collections.abc import Iterable
from pathlib import Path

from app import catalog
from app.planning import memory, overheads, rule_of_thumb, sources
from app.planning.architecture import Architecture
from app.planning.families import FAMILIES
from app.planning.ledger import Kernels
from app.planning.recipe import resolve
from app.planning.sizes import Size, total
from app.planning.sources import Source
from app.planning.specs import Parallelism, Training
from app.planning.states import elements_by_component
from app.planning.timeline import kept_after_forward
from app.settings import Settings
from app.units import MIB

FOLDER = Path("docs")

_INTRODUCTION = (
    "Generated from the code by `python -m app.docs`: these are the formulas that make the numbers, as an answer "
    "prints them. Names are those of the request and of a model's `config.json`; `parameters` is the model's count, "
    "`ceil_div(a, b)` rounds up. Bytes unless said otherwise."
)

_SHOWN_MODELS = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B", "openai-community/gpt2")

_KERNELS = {
    "Hugging Face code, 16-bit weights (DeepSpeed, FSDP)": Kernels("bf16", "bf16", "flash", False, False),
    "Hugging Face code, autocast over FP32 weights": Kernels("fp32", "bf16", "flash", False, False),
    "Hugging Face code, eager attention": Kernels("bf16", "bf16", "eager", False, False),
    "Megatron's fused kernels": Kernels("bf16", "bf16", "flash", True, False),
}

_LAYOUTS = [
    (framework, precision, stage)
    for framework, precision in (
        ("transformers", "bf16-mixed"),
        ("transformers", "bf16"),
        ("deepspeed", "bf16-mixed"),
        ("megatron", "bf16-mixed"),
        ("torchtitan", "bf16-mixed"),
    )
    for stage in (0, 1, 2, 3)
    if (framework, stage) not in (("torchtitan", 1), ("megatron", 2), ("megatron", 3))
]


def formulas() -> str:
    """Every term of a memory estimate, as the engine prints it, with its source."""
    models = {id: catalog.load().model(id).architecture for id in _SHOWN_MODELS}
    llama = models[_SHOWN_MODELS[0]]
    parts = [
        "# Formulas",
        _INTRODUCTION,
        "## Rule of thumb",
        _table(("part", "FP32 bytes"), ((group, size) for group, size, _ in rule_of_thumb.terms("fp32"))),
        "## Parameters",
        *(part for id, model in models.items() for part in (f"### {id}", _parameters(model))),
        "## What a block keeps for backward",
        *(part for title, kernels in _KERNELS.items() for part in (f"### {title}", _kept(llama, kernels))),
        "## Model states and the optimizer step",
        *(part for layout in _LAYOUTS for part in ("### {}, {}, ZeRO stage {}".format(*layout), _step(llama, *layout))),
        "## The moment of the loss",
        "Fully sharded Llama with autocast off, as FSDP runs it; backward has just made the gradient of the logits.",
        _loss(llama),
        "## Outside the allocator",
        _table(
            ("part", "bytes", "source"),
            ((term.name, term.bytes, _link(term.source)) for term in overheads.expected(None, ranks=2)),
        ),
        _upper_bound(),
        "## Sources",
        "\n".join(f"- {_link(source)}: {source.where}" for source in _all_sources()),
    ]
    return "\n\n".join(parts) + "\n"


def _upper_bound() -> str:
    return (
        f"`upper_bound_bytes` widens the allocator's slack to a {overheads.UPPER_ALLOCATOR_SLACK_DIVISOR}th and adds "
        f"{overheads.UPPER_FIXED_BYTES // MIB} MiB for kernels loaded on the way; families whose "
        f"activations are not verified by traced steps get activations and temporary memory once more. "
        f"It is not calibrated yet."
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


def _parameters(model: Architecture) -> str:
    return _table(("component", "parameters"), ((count.name, f"`{count.formula}`") for count in model.components))


def _kept(model: Architecture, kernels: Kernels) -> str:
    (block,) = [segment for segment in model.ledger(kernels) if segment.block]
    kept = kept_after_forward(block, "none")
    casts = total(cast.bytes for operation in block.operations for cast in operation.casts)
    rows: list[tuple[str, Size]] = [*kept.items(), *([("16-bit copies of weights", casts)] if casts else [])]
    return _table(("component", "bytes per block"), rows)


def _step(model: Architecture, framework: str, precision: str, stage: int) -> str:
    training = Training.model_validate({"framework": framework, "precision": precision})
    rules = resolve(training, Parallelism(data_parallel_size=2, zero_stage=stage), model).rules
    moment = memory.step_moments(rules, model.ledger(rules.kernels))[-1]
    weights = elements_by_component(model.ledger(rules.kernels))
    rows: list[tuple[str, object, str]] = [
        (term.name, term.bytes, _link(term.source)) for term in moment.terms if not term.name.startswith("weights.")
    ]
    if any(term.name == "weights.norm" for term in moment.terms):
        weight_bytes = next(term.bytes for term in moment.terms if term.name == "weights.norm")
        norm = weights["norm"]
        factor = weight_bytes.evaluate(model.sizes) // norm.evaluate(model.sizes)
        rows.insert(0, ("weights", f"`{factor} * parameters`", _link(sources.TENSOR_SIZE)))
    return _table(("part", "bytes", "source"), rows)


def _loss(model: Architecture) -> str:
    training = Training(precision="bf16-mixed")
    rules = resolve(training, Parallelism(data_parallel_size=8, zero_stage=3), model).rules
    moments = memory.step_moments(rules, model.ledger(rules.kernels))
    loss = next(moment for moment in moments if moment.label == "lm_head.log_softmax")
    rows = ((term.name, term.bytes, _link(term.source)) for term in loss.terms if term.bytes)
    return _table(("part", "bytes", "source"), rows)


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
