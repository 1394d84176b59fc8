"""What training keeps between steps when its matrix products, or its frozen weights, are in a number format."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from app.errors import InvalidInput
from app.planning import states
from app.planning.architecture import Architecture
from app.planning.memory import MemoryInputs, layout_sizes
from app.planning.peaks import segments_of
from app.planning.recipe import resolve
from app.planning.specs import Parallelism, Training
from app.precision.definition import Format

_QLORA = MappingProxyType({"method": "qlora", "optimizer": "adamw"})
_TRAINED_AS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fp32": {"precision": "fp32"},
        "tf32": {"precision": "fp32"},
        "fp16": {"precision": "fp16-mixed"},
        "bf16": {"precision": "bf16-mixed"},
        **{
            name: {"precision": "fp8-mixed"}
            for name in ("fp8_e4m3", "fp8_e5m2", "mxfp8", "mxfp8_e5m2", "fp8_e4m3_128x128")
        },
        **{
            name: {**_QLORA, "lora": {"target_modules": "all-linear", "base_format": name}}
            for name in ("nf4", "nf4-double", "int8", "int4")
        },
    }
)
"""How a model is trained whose matrix products, or frozen weights, are in a format."""


@dataclass(frozen=True, slots=True)
class TrainingStates:
    """What stays between steps on one GPU without sharding, by the rules of `/v1/estimates/memory`."""

    method: str
    weights_bytes: int
    gradients_bytes: int
    optimizer_states_bytes: int
    total_bytes: int
    assumptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingBytes:
    """States of training in either format; null where no framework trains in it, and why."""

    before: TrainingStates | None
    after: TrainingStates | None
    notes: tuple[str, ...]


def training_bytes(architecture: Architecture, source: Format, to: Format) -> TrainingBytes:
    """The states of training in either format."""
    notes: list[str] = []
    before, after = (_states(architecture, format, notes) for format in (source, to))
    return TrainingBytes(before, after, tuple(notes))


def _states(architecture: Architecture, format: Format, notes: list[str]) -> TrainingStates | None:
    trained_as = _TRAINED_AS.get(format.name)
    if trained_as is None:
        notes.append(f"{format.name}: the planner knows no framework that trains with it")
        return None
    training = Training.model_validate(trained_as)
    inputs = MemoryInputs(architecture, training, Parallelism(), None, None, "detailed")
    try:
        recipe = resolve(training, inputs.parallelism, architecture)
    except InvalidInput as error:
        notes.append(f"{format.name}: {error.detail}")
        return None
    segments = segments_of(recipe, architecture, None)
    sizes: dict[str, int] = layout_sizes(inputs, recipe)
    counts = states.counts_on_rank(segments, experts_apart=recipe.rules.experts_apart)
    sizes |= {name: count.evaluate(sizes) for name, count in counts.items()}
    amounts = {"weights": 0, "optimizer_states": 0}
    for term in states.kept(recipe.rules, segments):
        amounts[term.group] += int(term.bytes.evaluate(sizes))
    gradients = states.trainable(recipe.rules, split=False) * states.element_bytes(recipe.rules.precision.gradients)
    held = int(gradients.evaluate(sizes))
    method = f"{training.method}, {trained_as.get('precision', 'adapters beside frozen weights')}"
    total = sum(amounts.values()) + held
    return TrainingStates(method, amounts["weights"], held, amounts["optimizer_states"], total, recipe.assumptions)
