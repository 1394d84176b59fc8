"""Models of the catalogue: a card and a `config.json` each, as `models/README.md` says."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.planning.architecture import Architecture, from_config

Task = Literal[
    "text-generation",
    "instruction-following",
    "code-generation",
    "reasoning",
    "fill-mask",
    "classification",
    "embedding",
    "text2text-generation",
    "translation",
    "summarization",
    "image-text-to-text",
]
"""What a model is used for. `text2text-generation` is any task put as text in, text out."""

FAMILY_USE: Mapping[str, str] = MappingProxyType(
    {
        "decoder-only": (
            "Reads from left to right and learns to predict the next token, so it continues a text: for writing, "
            "conversation, code and reasoning. A token never sees what comes after it."
        ),
        "encoder-only": (
            "Reads the whole text at once and learns to restore tokens that were masked, so every token knows both "
            "sides: for classifying, tagging, searching and embedding. It does not write."
        ),
        "encoder-decoder": (
            "Reads the whole input with an encoder and learns to write an output that depends on it: for "
            "translating, summarising and rewriting. Input and output each have a length of their own."
        ),
    }
)
"""The three architectures: how each reads, what it learns from, what it is therefore used for."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model of the catalogue and what a planner wants to know of it."""

    id: str
    organization: str
    licence: str
    """`not recorded` where nobody has looked it up."""
    released: date | None
    """The day it was announced or its paper appeared; null where no day is on record."""
    family: str
    family_use: str
    """What models of this family do, and why."""
    model_type: str
    pretraining_objective: str
    """What this model learned from first; the objective of its family where its own is not on record."""
    parameters: int
    active_parameters: int
    """Parameters that one token meets: fewer than `parameters` only in a mixture of experts."""
    context_tokens: int
    """The longest sequence that it was made for."""
    training_tokens: int | None
    """Tokens of pre-training, at least; null where nobody has said."""
    tasks: tuple[Task, ...]
    typical_use: str
    limits: str
    source: str


@dataclass(frozen=True, slots=True)
class Model:
    """A catalogue entry: its card and its shapes."""

    card: ModelCard
    architecture: Architecture


class _Row(BaseModel):
    """One table of a card file: what is missing, misspelt or of the wrong type stops the start."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: str
    organization: str
    licence: str
    released: date | None = None
    parameters: Annotated[int, Field(gt=0)]
    active_parameters: Annotated[int, Field(gt=0)] | None = None
    context_tokens: Annotated[int, Field(gt=0)] | None = None
    training_tokens: Annotated[int, Field(gt=0)] | None = None
    pretraining_objective: str | None = None
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, strict=False)]
    typical_use: str
    limits: str
    source: str


def models(folder: Traversable) -> dict[str, Model]:
    """All models in a folder of configs and `cards/`, by id. Raises ValueError for a row that is wrong or there twice,
    and UnsupportedModel for a config that no family reads.
    """
    found: dict[str, Model] = {}
    for id, row in _rows(folder / "cards"):
        if id in found:
            raise ValueError(f"two cards for {id}")
        found[id] = _model(id, row, folder)
    return found


def _rows(folder: Traversable) -> Iterator[tuple[str, _Row]]:
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        for id, row in tomllib.loads(file.read_text(encoding="utf-8")).items():
            yield id, _Row.model_validate(row)


def _model(id: str, row: _Row, folder: Traversable) -> Model:
    config = json.loads((folder / row.config).read_text(encoding="utf-8"))
    architecture = from_config(config, name=id, pointer=f"/{row.config}")
    family = architecture.family
    card = ModelCard(
        id=id,
        organization=row.organization,
        licence=row.licence,
        released=row.released,
        family=family.family,
        family_use=FAMILY_USE[family.family],
        model_type=family.model_type,
        pretraining_objective=row.pretraining_objective or family.pretraining_objective,
        parameters=row.parameters,
        active_parameters=row.active_parameters or row.parameters,
        context_tokens=row.context_tokens or architecture.shapes.longest_sequence,
        training_tokens=row.training_tokens,
        tasks=row.tasks,
        typical_use=row.typical_use,
        limits=row.limits,
        source=row.source,
    )
    return Model(card, architecture)
