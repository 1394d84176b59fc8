"""A checkpoint on disk: one safetensors file, or a folder of shards with an index. Everything is checked before use."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.checkpoints.faults import UnusableCheckpoint
from app.checkpoints.header import Header, InvalidHeader, Tensor, read_header

INDEX_SUFFIX = ".safetensors.index.json"
SUFFIX = ".safetensors"
CONFIG = "config.json"

_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", SUFFIX)
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file of a checkpoint. `identity` changes when the file does: size and time of change."""

    path: Path
    header: Header
    identity: tuple[int, int]

    @property
    def name(self) -> str:
        """What the index calls it."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file (`index` is None, one shard) or a folder. `extras` are its files besides weights, index and config;
    `left_out` what is in the folder but no part of the checkpoint: weights of other formats, and subfolders."""

    path: Path
    shards: tuple[Shard, ...]
    index_name: str | None = None
    index: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    extras: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether `path` is a folder."""
        return self.path.is_dir()

    def tensors(self) -> Iterable[tuple[Shard, Tensor]]:
        """Every tensor, with the shard it is in."""
        return ((shard, tensor) for shard in self.shards for tensor in shard.header.tensors)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises UnusableCheckpoint or InvalidHeader, which name the file that is wrong."""
    if path.is_file():
        return Checkpoint(path, (_shard(path),))
    if not path.is_dir():
        raise UnusableCheckpoint(f"{path} does not exist" if not path.exists() else f"{path} is no file and no folder")
    entries = sorted(path.iterdir())
    index_path = _only(path, [entry for entry in entries if entry.name.endswith(INDEX_SUFFIX)], "indexes")
    config_path = path / CONFIG
    config = _json(config_path) if config_path.is_file() else None
    index: Mapping[str, Any] | None = None
    shards: tuple[Shard, ...]
    if index_path is None:
        file = _only(
            path, [entry for entry in entries if entry.name.endswith(SUFFIX)], "safetensors files, but no index"
        )
        if file is None:
            raise UnusableCheckpoint(
                f"{path} has no safetensors file; give the folder or the file that has the weights"
            )
        shards = (_shard(file),)
    else:
        index = _json(index_path)
        shards = _indexed_shards(index_path, index)
    apart = {config_path, index_path, *(shard.path for shard in shards)}
    others = [entry for entry in entries if entry not in apart]
    extras = tuple(entry for entry in others if entry.is_file() and not entry.name.endswith(_OTHER_WEIGHTS))
    left_out = tuple(entry.name for entry in others if entry not in extras)
    return Checkpoint(path, shards, index_path.name if index_path else None, index, config, extras, left_out)


def _only(folder: Path, found: list[Path], what: str) -> Path | None:
    if len(found) > 1:
        raise UnusableCheckpoint(
            f"{folder} has several {what}: {_some(one.name for one in found)}; give a folder with one"
        )
    return found[0] if found else None


def _shard(path: Path) -> Shard:
    status = path.stat()
    try:
        with path.open("rb") as file:
            header = read_header(file, file_bytes=status.st_size)
    except InvalidHeader as error:
        raise InvalidHeader(f"{path}: {error.detail}") from None
    return Shard(path, header, (status.st_size, status.st_mtime_ns))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes().decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UnusableCheckpoint(f"{path} is not JSON in UTF-8 that can be understood in one way: {error}") from None
    if not isinstance(value, dict):
        raise UnusableCheckpoint(f"{path} must be a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{_some(twice)} is there twice")
    return members


def _indexed_shards(path: Path, index: Mapping[str, Any]) -> tuple[Shard, ...]:
    """The shards that the index names, each with exactly the tensors that the index says."""
    weight_map = index.get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(one, str) for one in weight_map.values())
    ):
        raise UnusableCheckpoint(f"{path} must have a weight_map that says in which shard each tensor is")
    if not isinstance(index.get("metadata", {}), dict):
        raise UnusableCheckpoint(f"{path}: metadata must be an object")
    expected: dict[str, set[str]] = defaultdict(set)
    for tensor, file in weight_map.items():
        expected[file].add(tensor)
    for file in expected:
        if "/" in file or "\\" in file or "\0" in file or not file.endswith(SUFFIX) or file == SUFFIX:
            raise UnusableCheckpoint(
                f"{path} names the shard {file!r}; it must be a plain file name ending in {SUFFIX}"
            )
    missing = [file for file in sorted(expected) if not (path.parent / file).is_file()]
    if missing:
        raise UnusableCheckpoint(
            f"{path.parent} lacks shards that its index names: {_some(missing)}; download them anew"
        )
    shards = tuple(_shard(path.parent / file) for file in sorted(expected))
    for shard in shards:
        held, named = shard.header.by_name.keys(), expected[shard.name]
        for wrong, fault in ((named - held, "lacks tensors that"), (held - named, "has tensors besides those that")):
            if wrong:
                raise UnusableCheckpoint(
                    f"{shard.path} {fault} the index names for it: {_some(sorted(wrong))}; "
                    "download the folder anew, or write the index again"
                )
    return shards


def _some(names: Iterable[str]) -> str:
    """The first names of many."""
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    return ", ".join(listed[:_MOST_NAMED]) + more
