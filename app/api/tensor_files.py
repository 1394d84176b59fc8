"""What a file of tensors says about itself: the headers of `.safetensors` and `.npy`, believed only where they agree.

A safetensors file is a length, a JSON header and the tensors' bytes without a gap
(https://huggingface.co/docs/safetensors); an npy file is one array (NumPy enhancement proposal 1).
"""

from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any

import numpy as np

from app.api.uploads import Body
from app.checkpoints import header as safetensors
from app.checkpoints.dtypes import FLOATS, NUMPY_DTYPES
from app.checkpoints.header import InvalidHeader
from app.errors import MalformedTensors

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 2**48

_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER_BYTES = 65_536


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
    start = body.read(safetensors.LENGTH_BYTES)
    if start[:6] == _NPY_MAGIC:
        return (_npy(body, start),)
    return _safetensors(body, start)


def _safetensors(body: Body, start: bytes) -> tuple[StoredTensor, ...]:
    try:
        length_bytes = safetensors.header_length(start, max_header_bytes=MAX_HEADER_BYTES)
        header = safetensors.parse_header(body.read(length_bytes))
    except InvalidHeader as error:
        raise MalformedTensors(f"{error.detail}; send a .safetensors or an .npy file as it is") from None
    if len(header.tensors) > MAX_TENSORS:
        raise MalformedTensors(
            f"the file has {len(header.tensors):,} tensors, at most {MAX_TENSORS:,} are read; send it in parts"
        )
    for tensor in header.tensors:
        _check_shape(tensor.name, tensor.shape)
    return tuple(
        StoredTensor(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            tensor.bytes,
            NUMPY_DTYPES[tensor.dtype] if tensor.dtype in FLOATS else None,
        )
        for tensor in header.tensors
    )


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape) or prod(shape) > MAX_ELEMENTS:
        raise MalformedTensors(
            f"{name[:200]!r} should have a shape of at most {MAX_DIMENSIONS} sizes, and {MAX_ELEMENTS:,} elements"
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
    _check_shape("array", shape)
    return StoredTensor("array", f"F{8 * kind.itemsize}", tuple(shape), elements * kind.itemsize, kind)
