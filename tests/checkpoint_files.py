"""Checkpoints for tests, written and read by the format's own library."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

NUMPY = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
Tensors = Mapping[str, np.ndarray[Any, Any]]


def as_bytes(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    whole = {name: np.ascontiguousarray(values).reshape(values.shape) for name, values in tensors.items()}
    return safetensors.numpy.save(whole, metadata)


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    path.write_bytes(as_bytes(tensors, metadata))
    return path


def read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: np.frombuffer(bytes(told["data"]), NUMPY[told["dtype"]]).reshape(told["shape"])
        for name, told in safetensors.deserialize(path.read_bytes())
    }


def write_folder(
    folder: Path, shards: Mapping[str, Tensors], *, config: dict[str, Any] | None = None, **index: Any
) -> Path:
    folder.mkdir()
    for name, tensors in shards.items():
        write(folder / name, tensors, {"format": "pt"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    total = sum(values.nbytes for tensors in shards.values() for values in tensors.values())
    told = {"metadata": {"total_size": total}, "weight_map": weight_map} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def same_bits(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
