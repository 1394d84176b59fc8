"""What a file of tensors says about itself: the headers of `.safetensors` and `.npy`, believed only where they agree.

A safetensors file is a length, a JSON header and the tensors' bytes without a gap
(https://huggingface.co/docs/safetensors); an npy file is one array (NumPy enhancement proposal 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from app.api import json_body
from app.api.uploads import Body
from app.errors import MalformedBody, MalformedTensors

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 2**48

_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER_BYTES = 65_536
_LONGEST_NAME = 200

FLOATS: Mapping[str, Any] = MappingProxyType(
    {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
        "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    }
)
"""Types of tensors that are converted."""

_OTHER_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "I16": 16,
        "U16": 16,
        "I32": 32,
        "U32": 32,
        "I64": 64,
        "U64": 64,
        "C64": 64,
        "F8_E8M0": 8,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "F4": 4,
    }
)
"""Bits of the other types: their tensors are passed over."""

_Header = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a file, `bytes` long, at its place in the order of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    numpy_type: Any
    """None where it is no float that is converted."""


def read_header(body: Body) -> tuple[StoredTensor, ...]:
    """The tensors that follow in the body, in the order of their bytes.

    Raises MalformedTensors for a header that cannot be, and says what is wrong with it.
    """
    start = body.read(8)
    if start[:6] == _NPY_MAGIC:
        return (_npy(body, start),)
    return _safetensors(body, int.from_bytes(start, "little"))


def _safetensors(body: Body, length: int) -> tuple[StoredTensor, ...]:
    if length > MAX_HEADER_BYTES:
        raise MalformedTensors(
            f"the first 8 bytes say that a header of {length:,} bytes follows, at most {MAX_HEADER_BYTES:,} may; "
            "send a .safetensors or an .npy file as it is"
        )
    try:
        header = json_body.parse(body.read(length))
    except MalformedBody as error:
        raise MalformedTensors(f"the header of the safetensors file: {error.detail}") from None
    if not isinstance(header, dict):
        raise MalformedTensors("the header of the safetensors file should be an object of tensors")
    tensors = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    if len(tensors) > MAX_TENSORS:
        raise MalformedTensors(
            f"the file has {len(tensors):,} tensors, at most {MAX_TENSORS:,} are read; send it in parts"
        )
    placed = sorted((_entry(name, entry) for name, entry in tensors), key=lambda found: found[:2])
    for (_, end, before), (start, _, after) in pairwise([(0, 0, None), *placed]):
        if start != end and after is not None:
            where = f"after {_shown(before.name)}" if before is not None else "at the beginning"
            what = "overlap" if start < end else f"leave {start - end:,} bytes"
            raise MalformedTensors(f"data_offsets of {_shown(after.name)} {what} {where}: tensors follow each other")
    return tuple(tensor for _, _, tensor in placed)


def _entry(name: str, entry: object) -> tuple[int, int, StoredTensor]:
    shown = _shown(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedTensors(f"{shown} should have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in {*FLOATS, *_OTHER_BITS}:
        known = ", ".join([*FLOATS, *_OTHER_BITS])
        raise MalformedTensors(f"{shown} has the unknown dtype {str(dtype)[:40]!r}; known: {known}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or prod(shape) > MAX_ELEMENTS:
        raise MalformedTensors(
            f"{shown} should have a shape of at most {MAX_DIMENSIONS} whole numbers, as many as it can hold"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedTensors(f"{shown} should have data_offsets of two whole numbers, begin and end")
    bits = 8 * FLOATS[dtype].itemsize if dtype in FLOATS else _OTHER_BITS[dtype]
    size = -(-prod(shape) * bits // 8)
    if offsets[1] - offsets[0] != size:
        raise MalformedTensors(
            f"{shown} has {prod(shape):,} elements of {dtype}, {size:,} bytes, but data_offsets leave "
            f"{offsets[1] - offsets[0]:,}"
        )
    return offsets[0], offsets[1], StoredTensor(name, dtype, tuple(shape), size, FLOATS.get(dtype))


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MAX_ELEMENTS * 8 for size in value
    )


def _npy(body: Body, start: bytes) -> StoredTensor:
    major, width = start[6], 2 if start[6] == 1 else 4
    if major not in (1, 2, 3):
        raise MalformedTensors(f"the npy file has version {major}; versions 1, 2 and 3 are read")
    length = body.read(width)
    size = int.from_bytes(length, "little")
    if size > _NPY_HEADER_BYTES:
        raise MalformedTensors(
            f"the npy file says that a header of {size:,} bytes follows, at most {_NPY_HEADER_BYTES:,} may"
        )
    text = BytesIO(length + body.read(size))
    try:
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, kind = read(text, max_header_size=_NPY_HEADER_BYTES)
    except (ValueError, SyntaxError, TypeError):
        raise MalformedTensors("the header of the npy file cannot be read; write it with numpy.save") from None
    if is_fortran and len(shape) > 1:
        raise MalformedTensors(
            "the npy file is in Fortran order; write it with numpy.save(file, numpy.ascontiguousarray(a))"
        )
    if kind.kind != "f" or kind.itemsize not in (2, 4, 8):
        raise MalformedTensors(f"the npy file has dtype {kind.str}; float16, float32 and float64 are read")
    elements = prod(shape)
    if not _are_sizes(list(shape)) or elements > MAX_ELEMENTS:
        raise MalformedTensors("the npy file has a shape that cannot be")
    return StoredTensor("array", f"F{8 * kind.itemsize}", tuple(shape), elements * kind.itemsize, kind)


def _shown(name: str) -> str:
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…")
