"""The header of a safetensors file: read from any stream of bytes, believed only after every figure in it was checked.

The format: eight bytes with the header's length (little-endian), that many bytes of JSON, then the tensors' data end to
end. Which dtypes there are and what a reader must refuse: https://github.com/huggingface/safetensors, README and
`safetensors/src/tensor.rs`. Stricter here: a duplicate key, a field nobody knows and a header that does not begin with
`{` are refused, since two readers could understand them differently.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

from app.errors import InvalidInput

LENGTH_BYTES = 8
"""The length field in front of the header."""

MAX_HEADER_BYTES = 100_000_000
"""Longer headers are refused, as the format's own library does."""

DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""Bits of one element of each dtype, in the library's order: files are laid out from the last to the first of them, so
that every tensor is aligned to its element."""

_ORDER = {dtype: place for place, dtype in enumerate(DTYPE_BITS)}
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_MOST = 2**64 - 1
_LONGEST_ECHO = 80


class InvalidHeader(InvalidInput):
    """The bytes are not a safetensors file, or its header says what cannot be. Save the file again, or download it
    anew."""

    slug = "invalid-safetensors"
    title = "This is not a usable safetensors file"


class ByteStream(Protocol):
    """What a header is read from: a file, or the body of a request."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none only at the end."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as a header has it. `begin_bytes` and `end_bytes` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin_bytes: int
    end_bytes: int

    @property
    def bytes(self) -> int:
        """How long its data is."""
        return self.end_bytes - self.begin_bytes

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return self.bytes * 8 // DTYPE_BITS[self.dtype]


@dataclass(frozen=True)
class Header:
    """A checked header: `tensors` lie end to end in this order, from `data_start_bytes` to `file_bytes`."""

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_start_bytes: int = LENGTH_BYTES

    @property
    def data_bytes(self) -> int:
        """How long the data of all tensors is."""
        return self.tensors[-1].end_bytes if self.tensors else 0

    @property
    def file_bytes(self) -> int:
        """How long the file is when it is whole. Who reads a stream of unknown length checks it at the end."""
        return self.data_start_bytes + self.data_bytes

    @cached_property
    def by_name(self) -> Mapping[str, Tensor]:
        """The tensors by their names."""
        return {tensor.name: tensor for tensor in self.tensors}


def read_header(
    stream: ByteStream, *, file_bytes: int | None = None, max_header_bytes: int = MAX_HEADER_BYTES
) -> Header:
    """The header at the start of `stream`, which is left at the first byte of data.

    `file_bytes` is how long the whole stream is, if that is known. Raises InvalidHeader, at the first thing that is
    wrong, before more than `max_header_bytes` are read.
    """
    first = _read(stream, LENGTH_BYTES)
    length_bytes = header_length(first, file_bytes=file_bytes, max_header_bytes=max_header_bytes)
    header = _read(stream, length_bytes)
    if len(header) < length_bytes:
        raise InvalidHeader(
            f"the header claims {length_bytes:,} bytes, but the file ends after {len(header):,}; it is truncated"
        )
    return parse_header(header, file_bytes=file_bytes)


def header_length(
    first_bytes: bytes, *, file_bytes: int | None = None, max_header_bytes: int = MAX_HEADER_BYTES
) -> int:
    """How many bytes of header follow the length field, which `first_bytes` (eight or more of the file) begin with.

    Raises InvalidHeader when they are too few, or when the length is beyond the cap or the end of the file.
    """
    if len(first_bytes) < LENGTH_BYTES:
        raise InvalidHeader(
            f"the file ends after {len(first_bytes)} bytes, within the eight of the header's length; "
            "it is truncated or not a safetensors file"
        )
    length_bytes = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if length_bytes > max_header_bytes:
        raise InvalidHeader(
            f"the header claims {length_bytes:,} bytes, more than the {max_header_bytes:,} that are allowed; "
            "it is not a safetensors file, or damaged"
        )
    if file_bytes is not None and LENGTH_BYTES + length_bytes > file_bytes:
        raise InvalidHeader(
            f"the header claims {length_bytes:,} bytes, but the file has {max(file_bytes - LENGTH_BYTES, 0):,} "
            "after its length field; it is truncated or not a safetensors file"
        )
    return length_bytes


def parse_header(header: bytes, *, file_bytes: int | None = None) -> Header:
    """What `header`, the JSON after the length field, says. Raises InvalidHeader when anything in it cannot be.

    With `file_bytes`, the whole file's length, data that ends before or after it is refused too.
    """
    members = dict(_json(header))
    metadata = _metadata(members.pop(_METADATA, {}))
    tensors = sorted(
        (_tensor(name, given) for name, given in members.items()), key=lambda one: (one.begin_bytes, one.end_bytes)
    )
    _check_contiguous(tensors)
    parsed = Header(tuple(tensors), metadata, LENGTH_BYTES + len(header))
    if file_bytes is not None and parsed.file_bytes != file_bytes:
        fault = "is truncated" if file_bytes < parsed.file_bytes else "has bytes that belong to no tensor"
        raise InvalidHeader(
            f"the file has {file_bytes:,} bytes, its header describes {parsed.file_bytes:,}: it {fault}"
        )
    return parsed


def write_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[Header, bytes]:
    """The header of a file with these tensors (name, dtype, shape), and the bytes to begin the file with.

    Tensors are laid out as the format's library does, widest dtype first and then by name, and the header is padded
    with spaces to a multiple of eight bytes. Raises InvalidHeader when it would be longer than readers accept.
    """
    laid_out, at = [], 0
    for name, dtype, shape in sorted(tensors, key=lambda one: (-_ORDER[one[1]], one[0])):
        size = _data_bytes(name, dtype, shape)
        laid_out.append(Tensor(name, dtype, shape, at, at + size))
        at += size
    described: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    for tensor in laid_out:
        offsets = [tensor.begin_bytes, tensor.end_bytes]
        described[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        raise InvalidHeader(f"the header would have {len(text):,} bytes; readers accept {MAX_HEADER_BYTES:,}")
    header = Header(tuple(laid_out), dict(metadata), LENGTH_BYTES + len(text))
    return header, len(text).to_bytes(LENGTH_BYTES, "little") + text


def _read(stream: ByteStream, size: int) -> bytes:
    """`size` bytes, however small the pieces are that they come in; fewer only where the stream ends."""
    pieces, missing = [], size
    while missing > 0:
        piece = stream.read(missing)
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _json(header: bytes) -> Iterable[tuple[str, Any]]:
    """The members of the one JSON object that a header is."""
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidHeader(f"the header is not UTF-8 at its byte {error.start}") from None
    if not text.startswith("{"):
        raise InvalidHeader("the header does not begin with {; it is not a safetensors file, or damaged")
    try:
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InvalidHeader(f"the header is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise InvalidHeader("the header is nested too deep") from None
    except ValueError:
        raise InvalidHeader("the header has a number of absurd length") from None
    members: Mapping[str, Any] = value
    return members.items()


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InvalidHeader(f"the header has {_echo(twice)} twice")
    return members


def _no_constant(text: str) -> None:
    raise InvalidHeader(f"the header has {text}, which is not JSON")


def _metadata(given: object) -> Mapping[str, str]:
    if not isinstance(given, dict):
        raise InvalidHeader(f"{_METADATA} must be an object of texts, not {_echo(given)}")
    for key, value in given.items():
        _check_text(key)
        if not isinstance(value, str):
            raise InvalidHeader(f"{_METADATA} must be an object of texts; {_echo(key)} is {_echo(value)}")
        _check_text(value)
    return given


def _check_text(text: str) -> None:
    """Half of a surrogate pair is a JSON escape, but no text: it could not be written back."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidHeader(f"the header has {_echo(text)}, which is not Unicode text") from None


def _tensor(name: str, given: object) -> Tensor:
    _check_text(name)
    if not isinstance(given, dict):
        raise InvalidHeader(f"tensor {_echo(name)} must be an object, not {_echo(given)}")
    if given.keys() != _FIELDS:
        missing = ", ".join(sorted(_FIELDS - given.keys()))
        extra = ", ".join(_echo(key) for key in sorted(given.keys() - _FIELDS))
        raise InvalidHeader(
            f"tensor {_echo(name)} " + (f"lacks {missing}" if missing else f"has unknown fields: {extra}")
        )
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise InvalidHeader(
            f"tensor {_echo(name)} has the unknown dtype {_echo(dtype)}; known: {', '.join(DTYPE_BITS)}"
        )
    if not _are_counts(shape):
        raise InvalidHeader(f"tensor {_echo(name)} has the shape {_echo(shape)}; it must be a list of counts")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise InvalidHeader(f"tensor {_echo(name)} has the data_offsets {_echo(offsets)}; they must be [begin, end]")
    begin, end = offsets
    size = _data_bytes(name, dtype, tuple(shape))
    if end - begin != size:
        raise InvalidHeader(
            f"tensor {_echo(name)} of dtype {dtype} and shape {_echo(shape)} has {size:,} bytes, "
            f"but its data_offsets {offsets} hold {end - begin:,}"
        )
    return Tensor(name, dtype, tuple(shape), begin, end)


def _are_counts(given: object) -> bool:
    return isinstance(given, list) and all(type(one) is int and 0 <= one <= _MOST for one in given)


def _data_bytes(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits > _MOST:
            raise InvalidHeader(
                f"tensor {_echo(name)} of dtype {dtype} has more bytes than can be counted: {_echo(shape)}"
            )
    if bits % 8:
        raise InvalidHeader(f"tensor {_echo(name)} of dtype {dtype} and shape {_echo(shape)} ends within a byte")
    return bits // 8


def _check_contiguous(tensors: list[Tensor]) -> None:
    """Every byte of data belongs to exactly one tensor."""
    at, before = 0, "the header"
    for tensor in tensors:
        if tensor.begin_bytes != at:
            fault = "overlaps with" if tensor.begin_bytes < at else f"leaves {tensor.begin_bytes - at:,} bytes after"
            raise InvalidHeader(f"tensor {_echo(tensor.name)} begins at {tensor.begin_bytes:,}, which {fault} {before}")
        at, before = tensor.end_bytes, _echo(tensor.name)


def _echo(value: object) -> str:
    """What was given, short enough for a sentence."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST_ECHO else text[: _LONGEST_ECHO - 1] + "…"
