"""GPUs of the catalogue, the MIG instances they can be split into, and which of them a driver's name means."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictInt, StrictStr, StringConstraints, model_validator

from app.catalog.rows import Day, Rate, Text, in_base_units, lines, tables
from app.catalog.team import Stored
from app.errors import UnknownName
from app.planning.specs import LARGEST_COUNT, Count, Gpu, Name, Spec
from app.units import MIB

RateFormat = Literal["fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8"]
"""Formats that peak rates are told for."""

MIG = ":mig-"
"""Between the key of a card and the name of a profile, in the key of an instance."""

_NULLABLE = (
    "reserved_bytes",
    "streaming_multiprocessors",
    "memory_bandwidth_bytes_per_second",
    "nvlink_bytes_per_second_per_direction",
    "thermal_design_power_watts",
    "notes",
)
_NUMBERS = (
    "compute_slices",
    "memory_slices",
    "most_instances",
    "streaming_multiprocessors",
    "memory_mib",
)


class MigProfile(Spec):
    """A way to cut an instance out of a card with NVIDIA's MIG."""

    profile: Name
    """NVIDIA's name: compute slices and memory, such as `3g.40gb`. The same name means other sizes on other cards."""
    gpu: Name | None
    """Key of such an instance, to be used wherever a GPU is named; null where nobody has published its memory."""
    compute_slices: Count
    """Slices of the card's compute units."""
    memory_slices: Count | None
    """Slices of the card's memory and its bandwidth; null where nobody has said."""
    most_instances: Count | None
    """How many of this profile fit on a card."""
    streaming_multiprocessors: Count | None
    """SMs of one instance."""
    memory_bytes: Count | None
    """Total memory that an instance reports, all of which CUDA can give out."""
    other_memory_bytes: tuple[Count, ...]
    """Totals that it reports with other drivers."""
    device_name: Name | None
    """What CUDA calls an instance."""
    source: Text
    """Where the figures come from."""
    notes: Text | None
    """What else is known of it."""


class Card(Gpu):
    """A GPU with everything recorded of it."""

    other_memory_bytes: Annotated[tuple[Count, ...], Field(max_length=20)] = ()
    """Totals that the same card reports in another state: with ECC switched, or to a driver before 510."""
    interconnect: Name | None = None
    """Its link to other GPUs, a key of `GET /v1/interconnects`; null for none, or where it is not on record."""
    pcie_generation: Annotated[StrictInt, Field(ge=1, le=9)] | None = None
    """Generation of its PCIe interface."""
    mig_profiles: tuple[MigProfile, ...] = ()
    """The instances that it can be split into."""
    as_of: Day
    """The day of these facts."""
    team: Stored | None = None
    """Who stored it; null for what ships with Tonnage."""

    @property
    def totals_mib(self) -> frozenset[int]:
        """Every total that it reports, in whole MiB as nvidia-smi prints them."""
        return frozenset(total // MIB for total in (self.memory_bytes, *self.other_memory_bytes))

    def reports_total(self, total_bytes: int) -> bool:
        """Whether this is a total that it reports, as nvidia-smi prints it."""
        return total_bytes // MIB in self.totals_mib

    def plain(self) -> Gpu:
        """What planning wants to know of it."""
        return Gpu.model_construct(**{name: getattr(self, name) for name in Gpu.model_fields})


class GpuFacts(Spec):
    """A GPU as a team describes it: a card that the catalogue has not, or one whose memory was changed."""

    name: Name
    """Name for people."""
    nvml_names: Annotated[tuple[Name, ...], Field(max_length=20)] = ()
    """Exact names NVML gives this card, by which the fleet's GPUs are told to be of this kind."""
    architecture: Name
    """NVIDIA architecture as `GET /v1/gpus` has it, such as `Ampere GA10x`: by another name, no run is known to be on
    such a GPU, and upper bounds are wider.
    """
    compute_capability: Annotated[StrictStr, StringConstraints(pattern=r"^[1-9][0-9]?\.[0-9]$")]
    """CUDA compute capability, such as `9.0`."""
    memory_bytes: Count
    """Total memory as NVML reports it."""
    other_memory_bytes: Annotated[tuple[Count, ...], Field(max_length=20)] = ()
    """Totals that the same card reports in another state, such as with ECC off."""
    reserved_bytes: Annotated[StrictInt, Field(ge=0, le=LARGEST_COUNT)] | None = None
    """Memory the driver keeps for itself; 640 MiB are assumed when it is left out."""
    streaming_multiprocessors: Count | None = None
    """Number of SMs."""
    memory_bandwidth_bytes_per_second: Rate | None = None
    """Peak memory bandwidth."""
    dense_flops_per_second: Annotated[dict[RateFormat, Rate], Field(default_factory=dict)]
    """Peak dense rate by format, without sparsity."""
    nvlink_bytes_per_second_per_direction: Rate | None = None
    """NVLink bandwidth of the card, one direction."""
    interconnect: Name | None = None
    """Its link to other GPUs, a key of `GET /v1/interconnects`."""
    pcie_generation: Annotated[StrictInt, Field(ge=1, le=9)] | None = None
    """Generation of its PCIe interface."""
    thermal_design_power_watts: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = None
    """Power limit the card ships with."""
    as_of: Day
    """The day of these facts."""
    source: Text
    """Where the figures come from, such as a data sheet or `nvidia-smi` on one of your nodes."""
    notes: Text | None = None
    """What a planner should know about this card."""

    @model_validator(mode="after")
    def _reserved_is_a_part(self) -> Self:
        if self.reserved_bytes is not None and self.reserved_bytes >= self.memory_bytes:
            raise ValueError("needs reserved_bytes less than memory_bytes")
        return self

    def card(self, key: str, team: Stored) -> Card:
        """The entry of the catalogue that it is."""
        return Card(key=key, team=team, **self.model_dump())


@dataclass(frozen=True, slots=True)
class Cards:
    """All cards that ship and the MIG instances whose memory is known, by key; and other names of keys."""

    cards: Mapping[str, Card]
    mig_instances: Mapping[str, Card]
    aliases: Mapping[str, str]


def load_cards(folder: Traversable) -> Cards:
    """Reads `gpus.toml` and `mig_profiles.csv`. Raises ValueError for a row that is wrong."""
    rows = tables(folder / "gpus.toml")
    as_of = rows.pop("collected_on")
    profiles: dict[str, list[dict[str, Any]]] = {}
    for line in lines(folder / "mig_profiles.csv"):
        profiles.setdefault(line.pop("gpu"), []).append(_profile_row(line))
    if strangers := profiles.keys() - rows.keys():
        raise ValueError(f"mig_profiles.csv has profiles of cards that gpus.toml has not: {sorted(strangers)}")
    aliases = {alias: key for key, row in rows.items() for alias in row.pop("aliases", ())}
    cards = {key: _card(key, row, profiles.get(key, []), as_of) for key, row in rows.items()}
    instances = {profile.gpu: _instance(card, profile) for card in cards.values() for profile in card.mig_profiles}
    known = {key: instance for key, instance in instances.items() if key is not None and instance is not None}
    return Cards(MappingProxyType(cards), MappingProxyType(known), MappingProxyType(aliases))


def named(cards: Iterable[Card], name: str, total_bytes: int | None) -> tuple[Card, ...]:
    """The cards that report exactly this name and, if it is given, this total."""
    return tuple(
        card for card in cards if name in card.nvml_names and (total_bytes is None or card.reports_total(total_bytes))
    )


def not_one(cards: Iterable[Card], name: str, total_bytes: int | None) -> UnknownName:
    """Why no single card can be told from a name and a total: the error for whoever must have one."""
    same_name = named(cards, name, None)
    if not same_name:
        is_instance = " MIG " in name.upper()
        names = sorted({one for card in cards for one in card.nvml_names if (" MIG " in one) == is_instance})
        instead = "POST /v1/gpus stores a card of your own"
        return UnknownName.among("NVML name", name, names, pointer="", see="GET /v1/gpus", instead=instead)
    known = ", ".join(f"{card.key} ({_mib(card.totals_mib)})" for card in same_name)
    if total_bytes is None:
        return UnknownName.at("", f"several cards report the name {name!r}; tell the total memory too: {known}")
    return UnknownName.at(
        "",
        f"no card reports the name {name!r} with a total of {total_bytes // MIB} MiB; by that name: {known}. "
        "Cards with other memory, and slices of a card, can be stored with POST /v1/gpus",
    )


def _mib(totals: Iterable[int]) -> str:
    return " or ".join(f"{total} MiB" for total in sorted(totals))


def _profile_row(line: dict[str, str]) -> dict[str, Any]:
    """A line of `mig_profiles.csv` with its numbers."""
    others = [int(total) for total in line.pop("other_memory_mib", "").split()]
    numbers = {name: int(value) for name, value in line.items() if name in _NUMBERS}
    return {"other_memory_mib": others, **line, **numbers}


def _card(key: str, row: dict[str, Any], profiles: list[dict[str, Any]], as_of: date) -> Card:
    rates = {format: rate * 1e12 for format, rate in row.pop("dense_tflops").items()}
    mig_source = row.pop("mig_source", None)
    figures = {**dict.fromkeys(_NULLABLE), **in_base_units(row)}
    mig = [_profile(key, profile, mig_source) for profile in profiles]
    return Card(key=key, dense_flops_per_second=rates, mig_profiles=tuple(mig), as_of=as_of, **figures)


def _profile(card: str, row: dict[str, Any], source: str | None) -> MigProfile:
    absent = dict.fromkeys(MigProfile.model_fields)
    key = f"{card}{MIG}{row['profile']}" if "memory_mib" in row else None
    return MigProfile(**{**absent, **in_base_units(row), "gpu": key, "source": source})


def _instance(card: Card, profile: MigProfile) -> Card | None:
    """An instance as a GPU of its own: nothing of its memory is reserved, and it reaches no other GPU."""
    if profile.memory_bytes is None:
        return None
    whole = max((other.memory_slices or 0 for other in card.mig_profiles), default=0)
    of_compute = _share(profile.streaming_multiprocessors, card.streaming_multiprocessors)
    of_memory = _share(profile.memory_slices, whole)
    bandwidth = card.memory_bandwidth_bytes_per_second
    rates = card.dense_flops_per_second if of_compute is not None else {}
    return Card(
        key=f"{card.key}{MIG}{profile.profile}",
        name=f"{card.name} MIG {profile.profile}",
        nvml_names=() if profile.device_name is None else (profile.device_name,),
        architecture=card.architecture,
        compute_capability=card.compute_capability,
        memory_bytes=profile.memory_bytes,
        reserved_bytes=0,
        streaming_multiprocessors=profile.streaming_multiprocessors,
        memory_bandwidth_bytes_per_second=None if bandwidth is None or of_memory is None else bandwidth * of_memory,
        dense_flops_per_second={format: rate * (of_compute or 0) for format, rate in rates.items()},
        nvlink_bytes_per_second_per_direction=None,
        thermal_design_power_watts=None,
        source=f"{profile.source}; rates: the card's, by the share of SMs; bandwidth: by the share of memory slices",
        notes="; ".join(filter(None, ["reaches no other GPU over NVLink or PCIe", profile.notes])),
        other_memory_bytes=profile.other_memory_bytes,
        pcie_generation=card.pcie_generation,
        as_of=card.as_of,
    )


def _share(part: int | None, whole: int | None) -> float | None:
    return None if not part or not whole else part / whole
