"""What clouds rent out, and for how much: dated prices, as sellers and collections of their lists tell them."""

from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, model_validator

from app.catalog.rows import Day, HostBytes, Rate, Text, Usd, lines, tables
from app.catalog.team import Stored
from app.planning.specs import Count, Name, Spec
from app.units import GB, GIB

Pricing = Literal["on-demand", "spot", "reserved"]


class Price(Spec):
    """A price for an hour of an instance."""

    per_hour_usd: Usd
    """For the whole instance."""
    per_gpu_hour_usd: Usd | None
    """For each of its GPUs; null where their number is not known."""
    lowest_per_hour_usd: Usd | None = None
    """In the cheapest region, where other regions were looked at."""
    highest_per_hour_usd: Usd | None = None
    """In the dearest region, where other regions were looked at."""
    as_of: date | None
    """The day of the price; null where it is not known."""
    is_order_of_magnitude: StrictBool
    """True for what moves by the hour, spot and marketplace prices, and for lists known to be old."""


class Instance(Spec):
    """An instance that somebody rents out, in one region."""

    key: Name
    """Key of the entry: seller, type and region."""
    provider: Name
    """Who rents it out, such as `aws`."""
    instance_type: Name
    """What the seller calls it."""
    region: Name | None
    """Where; null where the list does not say."""
    gpu: Name | None
    """Key of its GPUs (`GET /v1/gpus`); null where the catalogue has no such card."""
    gpu_name: Name | None = None
    """Name of its GPUs where they have no key."""
    gpus: Annotated[float, Field(gt=0)] | None
    """How many it has, a fraction for a slice of one; null where nobody has said."""
    cpus: Count | None
    """Virtual CPUs."""
    host_memory_bytes: HostBytes | None
    """Host memory."""
    network_bytes_per_second: Rate | None
    """Network bandwidth, front end included."""
    on_demand: Price | None
    """Price without commitment; null where there is none."""
    spot: Price | None
    """Price of what may be taken away at any time."""
    reserved: Price | None
    """Price of time that is booked ahead."""
    source: Text
    """Where prices and sizes come from."""
    notes: Text | None
    """What a planner should know."""
    team: Stored | None = None
    """Who stored it; null for what ships with Tonnage."""

    def price(self, pricing: Pricing) -> Price | None:
        """The price of that kind."""
        prices: Mapping[Pricing, Price | None] = {
            "on-demand": self.on_demand,
            "spot": self.spot,
            "reserved": self.reserved,
        }
        return prices[pricing]


@cache
def instances() -> MappingProxyType[str, Instance]:
    """All instances that ship, by key. Raises ValueError for a row that is wrong, or there twice."""
    folder = files("app.catalog")
    sources = tables(folder / "instance_sources.toml")
    found = [_instance(line, sources) for line in lines(folder / "instances.csv")]
    by_key = {instance.key: instance for instance in found}
    if len(by_key) != len(found):
        raise ValueError("instances.csv has a key twice")
    return MappingProxyType(by_key)


class InstanceFacts(Spec):
    """An instance and its prices, as a team tells them: for what it pays, or for machines of its own."""

    provider: Name
    """Who rents it out, or the team itself."""
    instance_type: Name
    """What the seller calls it."""
    region: Name | None = None
    """Where it is."""
    gpu: Name
    """Key of its GPUs (`GET /v1/gpus`)."""
    gpus: Rate
    """How many it has, a fraction for a slice of one."""
    cpus: Count | None = None
    """Virtual CPUs."""
    host_memory_bytes: HostBytes | None = None
    """Host memory."""
    network_bytes_per_second: Rate | None = None
    """Network bandwidth."""
    on_demand_per_hour_usd: Usd | None = None
    """Price of an hour without commitment."""
    spot_per_hour_usd: Usd | None = None
    """Price of an hour that may be taken away at any time."""
    reserved_per_hour_usd: Usd | None = None
    """Price of an hour that is booked ahead."""
    is_order_of_magnitude: StrictBool = False
    """True for prices that are not to be relied on."""
    as_of: Day
    """The day of the prices."""
    source: Text
    """Where the prices come from, such as a quote or an invoice."""
    notes: Text | None = None
    """What a planner should know."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        prices = (self.on_demand_per_hour_usd, self.spot_per_hour_usd, self.reserved_per_hour_usd)
        if all(price is None for price in prices):
            raise ValueError("needs at least one of on_demand_per_hour_usd, spot_per_hour_usd, reserved_per_hour_usd")
        return self

    def instance(self, key: str, team: Stored) -> Instance:
        """The entry of the catalogue that it is."""
        on_demand, spot, reserved = (
            price_of(amount, self.gpus, as_of=self.as_of, is_order_of_magnitude=self.is_order_of_magnitude)
            for amount in (self.on_demand_per_hour_usd, self.spot_per_hour_usd, self.reserved_per_hour_usd)
        )
        told = {name: getattr(self, name) for name in type(self).model_fields if name in Instance.model_fields}
        return Instance(key=key, on_demand=on_demand, spot=spot, reserved=reserved, team=team, **told)


def price_of(
    per_hour_usd: float | None,
    gpus: float | None,
    *,
    as_of: date | None,
    is_order_of_magnitude: bool,
    lowest: float | None = None,
    highest: float | None = None,
) -> Price | None:
    """A price with what it means for each GPU; None where there is none."""
    if per_hour_usd is None:
        return None
    return Price(
        per_hour_usd=per_hour_usd,
        per_gpu_hour_usd=None if gpus is None else per_hour_usd / gpus,
        lowest_per_hour_usd=lowest,
        highest_per_hour_usd=highest,
        as_of=as_of,
        is_order_of_magnitude=is_order_of_magnitude,
    )


def _instance(line: Mapping[str, str], sources: Mapping[str, Mapping[str, str]]) -> Instance:
    gpus, day = _number(line, "gpus"), _day(line, "as_of")
    is_rough = "order_of_magnitude" in line
    memory_gib, network_gb = _number(line, "host_memory_gib"), _number(line, "network_gb_per_second")
    return Instance(
        key=line["key"],
        provider=line["provider"],
        instance_type=line["instance_type"],
        region=line.get("region"),
        gpu=line.get("gpu"),
        gpu_name=line.get("gpu_name"),
        gpus=gpus,
        cpus=int(line["cpus"]) if "cpus" in line else None,
        host_memory_bytes=None if memory_gib is None else int(memory_gib * GIB),
        network_bytes_per_second=None if network_gb is None else network_gb * GB,
        on_demand=price_of(
            _number(line, "on_demand_usd"),
            gpus,
            as_of=day,
            is_order_of_magnitude=is_rough,
            lowest=_number(line, "lowest_usd"),
            highest=_number(line, "highest_usd"),
        ),
        spot=price_of(_number(line, "spot_usd"), gpus, as_of=_day(line, "spot_as_of"), is_order_of_magnitude=True),
        reserved=price_of(_number(line, "reserved_usd"), gpus, as_of=day, is_order_of_magnitude=is_rough),
        source=sources[line["source"]]["text"],
        notes=line.get("notes"),
    )


def _number(line: Mapping[str, str], name: str) -> float | None:
    return float(line[name]) if name in line else None


def _day(line: Mapping[str, str], name: str) -> date | None:
    return date.fromisoformat(line[name]) if name in line else None
