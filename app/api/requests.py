"""The request objects that several operations share, and how their names become values."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictInt, StrictStr, StringConstraints, model_validator

from app.api.hub_models import HubModel, HubModels
from app.catalog import Catalog
from app.errors import InvalidInput, UnknownName
from app.hub import is_model_id
from app.planning import architecture
from app.planning.architecture import Architecture
from app.planning.memory import MemoryInputs
from app.planning.specs import Estimator, Gpu, Hardware, Name, Parallelism, Spec, Training


def _plain(revision: str) -> str:
    if ".." in revision or "//" in revision or revision.endswith("/"):
        raise ValueError("should be a branch, a tag or a commit, such as main or refs/pr/1")
    return revision


Revision = Annotated[
    StrictStr,
    StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/+-]*$"),
    AfterValidator(_plain),
]


class ModelRequest(Spec):
    """A model: exactly one of `id`, `config` and `parameters`."""

    id: Name | None = None
    """A catalogue entry (`GET /v1/models`), such as `meta-llama/Llama-3.1-8B`; or any model of the hub, if the service
    looks models up in one."""
    revision: Revision | None = None
    """Branch, tag or commit of `id` in the model hub. Default: the catalogue's entry, else the branch `main`."""
    config: dict[str, Any] | None = None
    """The content of a Hugging Face `config.json`."""
    parameters: Annotated[StrictInt, Field(ge=1, le=10**15)] | None = None
    """A bare parameter count; shapes are inferred from it and the answer says so."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "ModelRequest":
        if sum(value is not None for value in (self.id, self.config, self.parameters)) != 1:
            raise ValueError("send exactly one of id, config and parameters")
        if self.revision is not None and self.id is None:
            raise ValueError("revision needs id: it is a branch, tag or commit of that model")
        return self


class MemoryRequest(Spec):
    """A training job whose memory is asked for."""

    model: ModelRequest
    training: Training = Training()
    parallelism: Parallelism = Parallelism()
    hardware: Hardware | None = None
    """Without it, `fits` is null."""
    estimator: Estimator = "detailed"
    """`detailed` follows every operation of the model; `rule_of_thumb` is a table of bytes per parameter."""


def find_in_hub(model: ModelRequest, catalog: Catalog, hub: HubModels | None) -> HubModel | None:
    """The model from the hub, if that is where it is to be looked for: the catalogue has no such id, or a revision is
    named. May take as long as the hub's time-out, so do it before anything that others wait for.

    Raises UnknownName, UnsupportedModel or InvalidInput, pointing into the request, and HubUnavailable.
    """
    if model.id is None:
        return None
    try:
        catalog.model(model.id)
        unknown = None
    except UnknownName as error:
        unknown = error.detail
    if unknown is None and model.revision is None:
        return None
    if hub is None:
        if unknown is None:
            why = "needs a model hub, and this service has none (TONNAGE_HUB_URL); leave it out, or send `config`"
            raise InvalidInput.at("/model/revision", f"a revision {why}")
        raise UnknownName.at(
            "/model/id", f"{unknown}; with TONNAGE_HUB_URL set, models of a hub would be looked up too"
        )
    if not is_model_id(model.id):
        raise UnknownName.at("/model/id", f"{unknown}; nor is it an id of a model hub, name or organization/name")
    try:
        return hub.look_up(model.id, model.revision)
    except UnknownName as error:
        if unknown is None or error.errors[0].pointer != "/model/id":
            raise
        raise UnknownName.at("/model/id", f"{unknown}; and {error.detail}") from None


def resolve_model(model: ModelRequest, catalog: Catalog, found: HubModel | None = None) -> Architecture:
    """The model's exact shapes; `found` is what `find_in_hub` gave. Raises UnknownName or UnsupportedModel, pointing
    into the request.
    """
    if found is not None:
        return found.architecture()
    if model.id is not None:
        return catalog.model(model.id).architecture
    if model.config is not None:
        return architecture.from_config(model.config)
    assert model.parameters is not None  # noqa: S101 - the validator has seen to it; this tells mypy
    return architecture.from_parameters(model.parameters)


def resolve_hardware(hardware: Hardware | None, catalog: Catalog) -> tuple[Gpu | None, int | None]:
    """The GPU, and how many the hardware has; None for no limit. Raises UnknownName or InvalidInput."""
    if hardware is None:
        return None, None
    gpu = catalog.gpu(hardware.gpu)
    if hardware.gpus_per_node is None:
        if hardware.nodes is not None:
            raise InvalidInput.at(
                "/hardware/gpus_per_node", "nodes needs gpus_per_node, the number of GPUs in one node"
            )
        return gpu, None
    return gpu, hardware.gpus_per_node * (hardware.nodes or 1)


def resolve_memory(request: MemoryRequest, catalog: Catalog, found: HubModel | None = None) -> MemoryInputs:
    """Everything `app.planning.memory.estimate` needs, with names looked up; `found` is what `find_in_hub` gave."""
    gpu, gpus = resolve_hardware(request.hardware, catalog)
    if request.estimator == "rule_of_thumb" and request.model.parameters is not None:
        model = architecture.bare_count(request.model.parameters)
    else:
        model = resolve_model(request.model, catalog, found)
    return MemoryInputs(
        architecture=model,
        training=request.training,
        parallelism=request.parallelism,
        gpu=gpu,
        gpus=gpus,
        estimator=request.estimator,
        gpus_per_node=request.hardware.gpus_per_node if request.hardware else None,
    )
