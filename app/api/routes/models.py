"""`/v1/models`: the models of the catalogue, and exact facts about any `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from fastapi import Body, Path, Query

from app.api import examples
from app.api.answers import shown_with
from app.api.auth import Viewer
from app.api.deps import CatalogDep, HubDep
from app.api.paging import Page, PageQuery, page_of
from app.api.problems import raises
from app.api.requests import ModelRequest, find_in_hub, resolve_model
from app.api.routing import v1_router
from app.catalog.cards import FAMILY_USE, ModelCard, Task
from app.errors import NotFound
from app.planning.architecture import Architecture, ComponentCount
from app.planning.lora import Adapters, adapters
from app.planning.specs import Lora, Spec

router = v1_router("catalogue")


class InspectRequest(Spec):
    """A model to look into."""

    model: ModelRequest
    lora: Lora | None = None
    """Low-rank adapters to count; then only they are trainable."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Exact facts of a model: what the class of `transformers` holds, tied weights counted once.

    `components` sum to `parameters`; each `formula` gives its parameters when evaluated with `shapes`.
    """

    name: str
    architecture: str
    model_type: str
    family: str
    family_use: str
    """What models of this family do, and why."""
    pretraining_objective: str
    """What the class is made to learn; the card of a model may know more."""
    parameters: int
    embedding_parameters: int
    non_embedding_parameters: int
    active_parameters: int
    trainable_parameters: int
    """All but fixed tables in full training; those of the adapters when `lora` is given."""
    adapters: Adapters | None
    """The adapters of `lora`, layer by layer."""
    components: tuple[ComponentCount, ...]
    shapes: Mapping[str, int]
    context_tokens: int
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelDetail(ModelCard):
    """A model of the catalogue: its card, and its exact facts beside it."""

    facts: ModelFacts


class ModelQuery(PageQuery):
    """Filters of the list of models."""

    family: Literal["encoder-only", "decoder-only", "encoder-decoder"] | None = None
    """Kind of transformer."""

    organization: Annotated[str, Query(min_length=1, max_length=100)] | None = None
    """Who published it; upper or lower case."""

    model_type: Annotated[str, Query(min_length=1, max_length=100)] | None = None
    """`model_type` of its `config.json`, such as `llama`; upper or lower case."""

    task: Task | None = None
    """What it is used for."""

    search: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """A part of its id; upper or lower case."""

    min_parameters: Annotated[int, Query(ge=0)] | None = None
    """At least so many parameters."""

    max_parameters: Annotated[int, Query(ge=0)] | None = None
    """At most so many parameters."""

    def admits(self, card: ModelCard) -> bool:
        """Whether a card passes all filters."""
        return (
            self.family in (None, card.family)
            and (self.organization is None or self.organization.lower() == card.organization.lower())
            and (self.model_type is None or self.model_type.lower() == card.model_type.lower())
            and (self.task is None or self.task in card.tasks)
            and (self.search is None or self.search.lower() in card.id.lower())
            and (self.min_parameters is None or card.parameters >= self.min_parameters)
            and (self.max_parameters is None or card.parameters <= self.max_parameters)
        )


@router.post("/models/inspect", summary="Count a model exactly", operation_id="inspectModel")
@shown_with(request=InspectRequest.model_validate(examples.INSPECT["adapters"]["value"]), hub=None)
def inspect_model(
    request: Annotated[InspectRequest, Body(openapi_examples=examples.INSPECT)],
    catalog: CatalogDep,
    hub: HubDep,
    _: Viewer,
) -> ModelFacts:
    """Parameters by component, family and shapes, from a `config.json` alone; and adapters, as PEFT counts them."""
    found = find_in_hub(request.model, catalog, hub)
    return facts_of(resolve_model(request.model, catalog, found), request.lora)


@router.get("/models", summary="List the models of the catalogue", operation_id="listModels")
@shown_with(query=ModelQuery(limit=1))
def list_models(query: Annotated[ModelQuery, Query()], catalog: CatalogDep, _: Viewer) -> Page[ModelCard]:
    """Model cards by id."""
    found = [(id, model.card) for id, model in sorted(catalog.models.items()) if query.admits(model.card)]
    return page_of(found, query, "models")


@router.get("/models/{id:path}", summary="Read one model", operation_id="getModel", responses=raises(NotFound))
@shown_with(id="Qwen/Qwen2.5-7B")
def get_model(
    id: Annotated[str, Path(description="Id of the model, in any case.", examples=["Qwen/Qwen2.5-7B"])],
    catalog: CatalogDep,
    _: Viewer,
) -> ModelDetail:
    """A model's card and its exact facts."""
    model = catalog.model_at_path(id)
    card = {field.name: getattr(model.card, field.name) for field in fields(model.card)}
    return ModelDetail(**card, facts=facts_of(model.architecture))


def facts_of(architecture: Architecture, lora: Lora | None = None) -> ModelFacts:
    """What can be said of these shapes without training. Raises InvalidInput for adapters beside no layer."""
    adapted = None if lora is None else adapters(architecture, lora)
    return ModelFacts(
        name=architecture.name,
        architecture=architecture.family.class_name,
        model_type=architecture.family.model_type,
        family=architecture.family.family,
        family_use=FAMILY_USE[architecture.family.family],
        pretraining_objective=architecture.family.pretraining_objective,
        parameters=architecture.parameters,
        embedding_parameters=architecture.embedding_parameters,
        non_embedding_parameters=architecture.parameters - architecture.embedding_parameters,
        active_parameters=architecture.active_parameters,
        trainable_parameters=architecture.trainable_parameters if adapted is None else adapted.parameters,
        adapters=adapted,
        components=architecture.components,
        shapes=architecture.sizes,
        context_tokens=architecture.shapes.longest_sequence,
        assumptions=architecture.assumptions,
        warnings=architecture.warnings,
    )
