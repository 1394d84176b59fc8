"""What clouds rent out, and for how much: dated prices, as sellers and collections of their lists tell them."""

from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, StrictBool

from app.catalog.rows import HostBytes, Rate, Text, lines, tables
from app.catalog.team import Stored
from app.planning.specs import Count, Name, Spec
from app.units import GB, GIB

Pricing = Literal["on-demand", "spot", "reserved"]


class Price(Spec):
    """A price for an hour of an instance."""

    per_hour_usd: Rate
    """For the whole instance."""
    per_gpu_hour_usd: Rate | None
    """For each of its GPUs; null where their number is not known."""
    lowest_per_hour_usd: Rate | None = None
    """In the cheapest region, where other regions were looked at."""
    highest_per_hour_usd: Rate | None = None
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
