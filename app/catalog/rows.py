"""How data files are read, with units for people there, bytes and seconds here; and what facts may look like."""

import csv
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime
from importlib.resources.abc import Traversable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictInt, StrictStr, StringConstraints

from app.units import GB, MIB

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def _day(value: object) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str) and _DAY.fullmatch(value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise ValueError("should be a day, such as 2026-01-31")


Day = Annotated[date, BeforeValidator(_day, json_schema_input_type=date)]
Text = Annotated[StrictStr, StringConstraints(min_length=1, max_length=4_000)]
HostBytes = Annotated[StrictInt, Field(ge=1, le=2**60)]
Rate = Annotated[float, Field(strict=True, gt=0, le=1e30, allow_inf_nan=False)]
Usd = Annotated[float, Field(strict=True, gt=0, le=1e9, allow_inf_nan=False)]

_UNITS: tuple[tuple[str, str, float], ...] = (
    ("gb_per_second", "bytes_per_second", GB),
    ("mib", "bytes", MIB),
    ("microseconds", "seconds", 1e-6),
)


def tables(file: Traversable) -> dict[str, Any]:
    """The tables of a TOML file, by key, and what stands before them."""
    return tomllib.loads(file.read_text(encoding="utf-8"))


def lines(file: Traversable) -> Iterator[dict[str, str]]:
    """The lines of a CSV file with a header, without the fields that are empty. Raises ValueError for a line that is
    longer than the header.
    """
    for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        if None in line:
            raise ValueError(f"{file.name}: a line is longer than the header: {line}")
        yield {name: value for name, value in line.items() if value}


def in_base_units(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with each figure, and each in a list, in bytes and seconds, and named so."""
    return dict(_converted(name, value) for name, value in row.items())


def _converted(name: str, value: Any) -> tuple[str, Any]:
    for unit, base, factor in _UNITS:
        if f"_{unit}" in f"_{name}":
            return name.replace(unit, base), _times(value, factor)
    return name, value


def _times(value: Any, factor: float) -> Any:
    return [one * factor for one in value] if isinstance(value, list) else value * factor
