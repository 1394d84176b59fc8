"""`/v1/scaling`: how large a model, and how much text, a budget is best spent on."""

from typing import Annotated

from fastapi import Body
from pydantic import Field, StrictFloat, StrictInt, StrictStr, StringConstraints

from app.api import examples
from app.api.answers import shown_with
from app.api.auth import Viewer
from app.api.deps import CatalogDep, HubDep
from app.api.hub_models import HubModel
from app.api.requests import ModelRequest, find_in_hub, resolve_model
from app.api.routing import v1_router
from app.catalog import Catalog
from app.errors import InvalidInput
from app.planning import scaling
from app.planning.scaling import ScalingAnswer, ScalingInputs, TextInputs
from app.planning.scaling_budget import BudgetInputs, BudgetKind
from app.planning.scaling_laws import LawKey
from app.planning.specs import Name, Spec

router = v1_router("scaling")

LARGEST_TOKENS = 10**18

Amount = Annotated[StrictFloat, Field(gt=0, le=1e35, allow_inf_nan=False)]
Rate = Annotated[StrictFloat, Field(ge=1e6, le=1e20, allow_inf_nan=False)]
Price = Annotated[StrictFloat, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Share = Annotated[StrictFloat, Field(ge=1e-6, le=1, allow_inf_nan=False)]
Tokens = Annotated[StrictInt, Field(ge=1, le=LARGEST_TOKENS)]

_BUDGETS: tuple[BudgetKind, ...] = ("flops", "petaflop_s_days", "gpu_hours", "cost_usd")


class ScalingRequest(Spec):
    """A budget: exactly one of `flops`, `petaflop_s_days`, `gpu_hours` and `cost_usd`; or none, for what training
    `model` on its tokens takes.
    """

    flops: Amount | None = None
    """Floating-point operations of the whole training run."""
    petaflop_s_days: Amount | None = None
    """PetaFLOP/s-days: 8.64e19 operations each."""
    gpu_hours: Amount | None = None
    """Hours of one GPU, over all GPUs; needs `gpu` and `mfu`, or `achieved_flops_per_second`."""
    cost_usd: Amount | None = None
    """US dollars; needs `price_per_gpu_hour_usd` and what `gpu_hours` needs."""
    gpu: Name | None = None
    """Key of the catalogue (`GET /v1/gpus`): the card whose peak rate `mfu` speaks of."""
    format: Annotated[StrictStr, StringConstraints(min_length=1, max_length=20)] | None = None
    """Number format of that peak rate, such as `bf16` (the default) or `fp8`."""
    mfu: Share | None = None
    """Model FLOPs utilization: the share of the dense peak rate that training gets done, from 0 to 1."""
    achieved_flops_per_second: Rate | None = None
    """Operations per second that one GPU gets done, instead of `mfu`."""
    price_per_gpu_hour_usd: Price | None = None
    """What an hour of one GPU costs."""
    law: LawKey = "besiroglu-2024"
    """The law whose numbers lead the answer; `laws` has all of them."""
    model: ModelRequest | None = None
    """A model to place against the laws."""
    tokens: Tokens | None = None
    """Tokens that `model` is or was trained on. Default: those of its card; else as many as the budget pays for."""
    sequence_length: Annotated[StrictInt, Field(ge=1, le=2**26)] | None = None
    """For the exact count of the model's operations. Default 2,048, or the longest the model takes."""
    unique_tokens: Tokens | None = None
    """Different tokens there are, when that is less than a budget asks for: the rest is repetition."""
    inference_tokens: Tokens | None = None
    """Tokens that the model will read and write in service: a smaller model, trained longer, is then cheaper."""
    bytes_per_token: Annotated[StrictFloat, Field(ge=0.1, le=100, allow_inf_nan=False)] = 3.94
    """Bytes of curated text that make one token."""
    kept_share_low: Share = 0.01
    """Least share of the raw text that survives curation."""
    kept_share_high: Share = 0.03
    """Largest share of the raw text that survives curation."""


@router.post(
    "/scaling/compute-optimal",
    summary="Spend a training budget best",
    operation_id="computeOptimal",
)
@shown_with(request=ScalingRequest.model_validate(examples.SCALING["gopher"]["value"]), hub=None)
def compute_optimal(
    request: Annotated[ScalingRequest, Body(openapi_examples=examples.SCALING)],
    catalog: CatalogDep,
    hub: HubDep,
    _: Viewer,
) -> ScalingAnswer:
    """Parameters and tokens for a budget by the published laws, with the loss they predict and the raw text to collect.

    `law` leads the answer; `laws` has what each law says, its formulas and constants, which parameters and operations
    it counts, and whether it extrapolates beyond the runs it was fitted to. All laws but DeepSeek's count 6 operations
    per parameter and token, without attention scores; a `model` is placed against each law, its exact operations
    beside. `unique_tokens` asks for the best use of too little text, `inference_tokens` for the cheapest training and
    service together.
    """
    found = None if request.model is None else find_in_hub(request.model, catalog, hub)
    return scaling.compute_optimal(resolve_scaling(request, catalog, found))


def _check(request: ScalingRequest) -> None:
    given = [name for name in _BUDGETS if getattr(request, name) is not None]
    if len(given) > 1:
        raise InvalidInput.at(f"/{given[1]}", f"{' and '.join(given)} are both budgets; send exactly one of them")
    if request.kept_share_low > request.kept_share_high:
        raise InvalidInput.at(
            "/kept_share_low",
            f"kept_share_low {request.kept_share_low:g} is more than kept_share_high {request.kept_share_high:g}; send "
            "both, the smaller one low",
        )
    if request.model is None:
        for name in ("tokens", "sequence_length"):
            if getattr(request, name) is not None:
                raise InvalidInput.at(
                    f"/{name}", f"{name} speaks of a model's training; send model too, or leave it out"
                )


def resolve_scaling(request: ScalingRequest, catalog: Catalog, found: HubModel | None = None) -> ScalingInputs:
    """Everything `app.planning.scaling` needs, with names looked up; `found` is what `find_in_hub` gave.

    Raises InvalidInput for fields that contradict each other or would do nothing, UnknownName for a gpu or model.
    """
    _check(request)
    kind = next((name for name in _BUDGETS if getattr(request, name) is not None), None)
    budget = BudgetInputs(
        kind=kind,
        amount=None if kind is None else getattr(request, kind),
        gpu=None if request.gpu is None else catalog.gpu(request.gpu, pointer="/gpu"),
        format=request.format,
        mfu=request.mfu,
        achieved_flops_per_second=request.achieved_flops_per_second,
        price_per_gpu_hour_usd=request.price_per_gpu_hour_usd,
    )
    architecture = None if request.model is None else resolve_model(request.model, catalog, found)
    tokens, source = request.tokens, "request"
    if tokens is None and request.model is not None and request.model.id is not None and found is None:
        tokens, source = catalog.model(request.model.id).card.training_tokens, "model card"
    if kind is None and architecture is not None and tokens is None:
        raise InvalidInput.at(
            "/tokens", f"no budget is given, and no record says how many tokens {architecture.name} saw; send either"
        )
    return ScalingInputs(
        budget=budget,
        law=request.law,
        architecture=architecture,
        tokens=tokens,
        tokens_source=source,
        sequence_length=request.sequence_length,
        unique_tokens=request.unique_tokens,
        inference_tokens=request.inference_tokens,
        text=TextInputs(request.bytes_per_token, request.kept_share_low, request.kept_share_high),
    )
