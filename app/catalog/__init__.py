"""The facts the product ships: GPUs and models, as data files with one loader. Names match whole, or the nearest are
named.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any

from app.catalog import cards
from app.catalog.cards import Model
from app.errors import NotFound, UnknownName
from app.planning.specs import Gpu
from app.units import GB, MIB

_LONGEST_NAME = 200
"""Of a longer name from a URL, the rest is not looked at: likeness takes time with the square of the length."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything the catalogue holds, read-only. Look-ups accept exact keys (upper or lower case) and aliases only."""

    gpus: Mapping[str, Gpu]
    models: Mapping[str, Model]
    _gpu_aliases: Mapping[str, str]
    _model_ids: Mapping[str, str]

    def gpu(self, key: str, *, pointer: str = "/hardware/gpu") -> Gpu:
        """The GPU with this key. Raises UnknownName with the nearest keys, pointing at `pointer`."""
        found = self._find_gpu(key)
        if found is None:
            raise UnknownName.among("gpu", key, list(self.gpus), pointer=pointer, see="GET /v1/gpus")
        return found

    def gpu_at_path(self, key: str) -> Gpu:
        """The GPU of a URL path. Raises NotFound with the nearest keys."""
        found = self._find_gpu(key)
        if found is None:
            raise NotFound(_unknown("gpu", key, self.gpus, see="GET /v1/gpus").detail)
        return found

    def gpus_with_nvml_name(self, name: str) -> tuple[Gpu, ...]:
        """The cards that report exactly this NVML name; several share one where a card has two memory sizes."""
        return tuple(gpu for gpu in self.gpus.values() if name in gpu.nvml_names)

    def model(self, id: str, *, pointer: str = "/model/id") -> Model:
        """The model with this id. Raises UnknownName with the nearest ids, pointing at `pointer`."""
        found = self._find_model(id)
        if found is None:
            raise UnknownName.among("model", id, list(self.models), pointer=pointer, see="GET /v1/models")
        return found

    def model_at_path(self, id: str) -> Model:
        """The model of a URL path. Raises NotFound with the nearest ids."""
        found = self._find_model(id)
        if found is None:
            raise NotFound(_unknown("model", id, self.models, see="GET /v1/models").detail)
        return found

    def _find_gpu(self, key: str) -> Gpu | None:
        lowered = key.lower()
        return self.gpus.get(self._gpu_aliases.get(lowered, lowered))

    def _find_model(self, id: str) -> Model | None:
        known = self._model_ids.get(id.lower())
        return None if known is None else self.models[known]


@cache
def load() -> Catalog:
    """Reads and checks all data files, once. A row that lacks a source or a figure raises, and nothing starts."""
    folder = files("app.catalog")
    rows = _toml(folder / "gpus.toml")
    gpus = {key: _gpu(key, row) for key, row in rows.items()}
    models = cards.models(folder / "models")
    return Catalog(
        gpus=MappingProxyType(gpus),
        models=MappingProxyType(models),
        _gpu_aliases=MappingProxyType({alias: key for key, row in rows.items() for alias in row.get("aliases", ())}),
        _model_ids=MappingProxyType({id.lower(): id for id in models}),
    )


def _gpu(key: str, row: dict[str, Any]) -> Gpu:
    reserved_mib = row.get("reserved_mib")
    nvlink = row.get("nvlink_gb_per_second_per_direction")
    bandwidth = row.get("memory_bandwidth_gb_per_second")
    return Gpu(
        key=key,
        name=row["name"],
        nvml_names=tuple(row["nvml_names"]),
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        memory_bytes=row["memory_mib"] * MIB,
        reserved_bytes=None if reserved_mib is None else reserved_mib * MIB,
        streaming_multiprocessors=row.get("streaming_multiprocessors"),
        memory_bandwidth_bytes_per_second=None if bandwidth is None else bandwidth * GB,
        dense_flops_per_second={format: rate * 1e12 for format, rate in row["dense_tflops"].items()},
        nvlink_bytes_per_second_per_direction=None if nvlink is None else nvlink * GB,
        thermal_design_power_watts=row.get("thermal_design_power_watts"),
        source=row["source"],
        notes=row.get("notes"),
    )


def _unknown(kind: str, name: str, known: Mapping[str, object], *, see: str) -> UnknownName:
    return UnknownName.among(kind, name[:_LONGEST_NAME], list(known), pointer="", see=see)


def _toml(file: Traversable) -> dict[str, dict[str, Any]]:
    return tomllib.loads(file.read_text(encoding="utf-8"))
