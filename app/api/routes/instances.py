"""`/v1/instances`: what clouds rent out and for how much, and the team's own prices."""

from itertools import chain
from typing import Annotated, Literal

from fastapi import Body, Path, Query, Response

from app.api.answers import described, documented, shown_with
from app.api.auth import Planner, Viewer
from app.api.deps import CatalogDep, Tx
from app.api.entry_examples import INSTANCE_ANSWER, INSTANCE_REQUESTS, NEW_INSTANCE_REQUESTS
from app.api.idempotency import OnceDep
from app.api.paging import Page, page_of
from app.api.preconditions import IfNoneMatch, Kept, Precondition
from app.api.problems import raises
from app.api.routing import v1_router
from app.api.team_entries import (
    NOT_MODIFIED,
    PLACED,
    TAGGED,
    Keyed,
    OriginQuery,
    Store,
    by_key,
    gpu_of_query,
    refuse_shipped,
    shown,
)
from app.catalog.instances import Instance, InstanceFacts, Pricing
from app.errors import Conflict, NotFound, UnknownName

router = v1_router("catalogue")

Key = Annotated[str, Path(description="Key of the instance.", examples=["aws:p5.48xlarge:us-east-1"])]
_DEAREST = 1e12
"""Stands for no price where prices are compared: beyond all that can be asked for."""

Usd = Annotated[float, Query(gt=0, le=1e9, allow_inf_nan=False)]


class InstanceQuery(OriginQuery):
    """Which instances to list."""

    gpu: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """Instances with this GPU, by its key or an alias."""
    provider: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """Instances of this seller, such as `aws`; upper or lower case."""
    region: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """Instances in this region, as the seller calls it."""
    min_gpus: Annotated[float, Query(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    """Instances with at least this many GPUs."""
    pricing: Pricing = "on-demand"
    """Which price `max_price_usd`, `max_price_per_gpu_usd` and `sort` mean."""
    max_price_usd: Usd | None = None
    """Instances that cost at most this much an hour."""
    max_price_per_gpu_usd: Usd | None = None
    """Instances that cost at most this much an hour for each GPU."""
    include_order_of_magnitude: bool = True
    """`false` leaves out instances whose price of this kind is an order of magnitude only, or not there."""
    sort: Literal["key", "price", "price-per-gpu"] = "key"
    """By key, or from the cheapest to the dearest; instances without such a price come last."""

    def admits(self, instance: Instance, gpu: str | None) -> bool:
        """Whether the filters let it through; `gpu` is the key that the filter of this name means."""
        price = instance.price(self.pricing)
        return (
            gpu in (None, instance.gpu)
            and (self.provider is None or instance.provider.lower() == self.provider.lower())
            and self.region in (None, instance.region)
            and (self.min_gpus is None or (instance.gpus or 0) >= self.min_gpus)
            and (self.max_price_usd is None or self._amount(instance, "price") <= self.max_price_usd)
            and (
                self.max_price_per_gpu_usd is None
                or self._amount(instance, "price-per-gpu") <= self.max_price_per_gpu_usd
            )
            and (self.include_order_of_magnitude or (price is not None and not price.is_order_of_magnitude))
        )

    def place(self, by_key: str, instance: Instance) -> str:
        """Its place in the list, as text that sorts."""
        return by_key if self.sort == "key" else f"{self._amount(instance, self.sort):020.6f} {by_key}"

    def _amount(self, instance: Instance, of: str) -> float:
        price = instance.price(self.pricing)
        amount = None if price is None else price.per_hour_usd if of == "price" else price.per_gpu_hour_usd
        return _DEAREST if amount is None else amount


class NewInstance(InstanceFacts, Keyed):
    """An instance and its prices as the team pays them, with its key."""


@router.get("/instances", summary="List instances", operation_id="listInstances", responses=raises(UnknownName))
@shown_with(query=InstanceQuery(limit=1, gpu="h100-sxm-80gb", min_gpus=8, provider="aws"))
def list_instances(query: Annotated[InstanceQuery, Query()], catalog: CatalogDep, _: Viewer) -> Page[Instance]:
    """What clouds rent out, and the team's own prices beside it. Each price has its day, where it is known, and says
    when it is an order of magnitude only.
    """
    gpu = gpu_of_query(query.gpu, catalog)
    instances = chain(catalog.instances.values(), catalog.team.instances.values())
    found = [
        (query.place(place, instance), instance)
        for place, instance in by_key(instances, query.origin)
        if query.admits(instance, gpu)
    ]
    return page_of(sorted(found, key=lambda entry: entry[0]), query, "instances")


@router.get(
    "/instances/{key}",
    operation_id="getInstance",
    summary="Read an instance",
    response_model=Instance,
    responses={200: {"description": "The instance.", "headers": described(TAGGED)}, **NOT_MODIFIED, **raises(NotFound)},
)
@shown_with(key="aws:p5.48xlarge:us-east-1", kept=IfNoneMatch(None))
def get_instance(key: Key, catalog: CatalogDep, kept: Kept, _: Viewer) -> Response:
    """An instance by its key."""
    return shown(catalog.instance_at_path(key), kept)


@router.post(
    "/instances",
    operation_id="createInstance",
    summary="Store a price of your own",
    status_code=201,
    response_model=Instance,
    responses={
        201: documented(INSTANCE_ANSWER, "The instance.", {**TAGGED, **PLACED}),
        **raises(Conflict, UnknownName),
    },
)
def create_instance(
    body: Annotated[NewInstance, Body(openapi_examples=NEW_INSTANCE_REQUESTS)],
    principal: Planner,
    once: OnceDep,
    tx: Tx,
    catalog: CatalogDep,
) -> Response:
    """Store what the team pays for an instance, or what an hour of its own machines costs, for the whole team. It
    stands beside what the catalogue says of the same instance.
    """

    def check() -> None:
        refuse_shipped(body.key, ships=body.key in catalog.instances)
        catalog.gpu(body.gpu, pointer="/gpu")

    return Store("instance", "/v1/instances", tx, principal).create(body.key, body, once, check)


@router.put(
    "/instances/{key}",
    operation_id="replaceInstance",
    summary="Change a price of your own",
    response_model=Instance,
    responses={
        200: documented(INSTANCE_ANSWER, "The instance as it stands now.", TAGGED),
        **raises(NotFound, UnknownName),
    },
)
def replace_instance(
    key: Key,
    body: Annotated[InstanceFacts, Body(openapi_examples=INSTANCE_REQUESTS)],
    if_match: Precondition,
    principal: Planner,
    tx: Tx,
    catalog: CatalogDep,
) -> Response:
    """Replace what is stored of an instance and its prices."""

    def check() -> None:
        catalog.gpu(body.gpu, pointer="/gpu")

    return Store("instance", "/v1/instances", tx, principal).replace(key, body, if_match, check)


@router.delete(
    "/instances/{key}",
    operation_id="deleteInstance",
    summary="Delete a price of your own",
    status_code=204,
    response_class=Response,
    response_description="The price is gone.",
    responses=raises(NotFound),
)
def delete_instance(key: Key, if_match: Precondition, principal: Planner, tx: Tx) -> None:
    """Take an instance of your own out of every list."""
    Store("instance", "/v1/instances", tx, principal).delete(key, if_match)
