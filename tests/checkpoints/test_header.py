"""What a header may say, and every way in which it can lie."""

import io
import json
from typing import Any

import numpy as np
import pytest
import safetensors
from checkpoint_files import as_bytes
from hypothesis import given
from hypothesis import strategies as st

from app.checkpoints.header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    InvalidHeader,
    header_length,
    parse_header,
    read_header,
    write_header,
)


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


GOOD = file_of({"a": tensor()}, bytes(8))
TWICE = json.dumps({"a": tensor(), "A": tensor()}).replace("A", "a").encode()

LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "within the length field": (b"\x10\0\0", "ends after 3 bytes"),
    "length beyond the file": (GOOD[:20], "truncated"),
    "length beyond the cap": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "more than the 100,000,000"),
    "length of all ones": (b"\xff" * 8 + b"{}", "not a safetensors file"),
    "a pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "not a safetensors file"),
    "no header at all": (bytes(8), "does not begin with {"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not UTF-8 at its byte 2"),
    "not JSON": (file_of(b'{"a": '), "not JSON"),
    "data after the JSON": (file_of(b"{} {}"), "not JSON"),
    "NaN": (file_of(b'{"a": NaN}'), "NaN"),
    "an endless number": (file_of(b'{"a": ' + b"9" * 10_000 + b"}"), "absurd length"),
    "nested without end": (file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deep"),
    "a list": (file_of([]), "does not begin with {"),
    "leading space": (file_of(b" {}"), "does not begin with {"),
    "a name twice": (file_of(TWICE, bytes(8)), '"a" twice'),
    "a field twice": (file_of(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": []}}'), '"dtype" twice'),
    "half of a surrogate pair": (file_of({"\ud800": tensor()}, bytes(8)), "not Unicode"),
    "metadata is a list": (file_of({"__metadata__": []}), "must be an object of texts"),
    "metadata is null": (file_of({"__metadata__": None}), "must be an object of texts"),
    "metadata has a number": (file_of({"__metadata__": {"step": 3}}), '"step" is 3'),
    "a tensor is a list": (file_of({"a": []}), '"a" must be an object'),
    "no dtype": (file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "lacks dtype"),
    "no shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "lacks shape"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "lacks data_offsets"),
    "one field more": (file_of({"a": tensor(strides=[1])}, bytes(8)), 'unknown fields: "strides"'),
    "unknown dtype": (file_of({"a": tensor("F31")}, bytes(8)), '"F31"; known'),
    "dtype is a number": (file_of({"a": tensor(32)}, bytes(8)), "unknown dtype 32"),  # type: ignore[arg-type]
    "shape is a number": (file_of({"a": tensor(shape=2)}, bytes(8)), "list of counts"),
    "negative size": (file_of({"a": tensor(shape=[-2])}, bytes(8)), "list of counts"),
    "two negative sizes": (file_of({"a": tensor(shape=[-2, -1])}, bytes(8)), "list of counts"),
    "a fraction": (file_of({"a": tensor(shape=[2.0])}, bytes(8)), "list of counts"),
    "a boolean": (file_of({"a": tensor(shape=[2, True])}, bytes(8)), "list of counts"),
    "sizes that overflow": (
        file_of({"a": tensor(shape=[2**32, 2**32, 2])}, bytes(8)),
        "more bytes than can be counted",
    ),
    "overflow to the right size": (
        file_of({"a": tensor(shape=[2**63 + 1, 2])}, bytes(8)),
        "more bytes than can be counted",
    ),
    "one offset": (file_of({"a": tensor(offsets=[8])}, bytes(8)), "[begin, end]"),
    "three offsets": (file_of({"a": tensor(offsets=[0, 4, 8])}, bytes(8)), "[begin, end]"),
    "negative offset": (file_of({"a": tensor(offsets=[-8, 0])}, bytes(8)), "[begin, end]"),
    "offsets backwards": (file_of({"a": tensor(offsets=[8, 0])}, bytes(8)), "hold -8"),
    "too few bytes for the shape": (file_of({"a": tensor(offsets=[0, 7])}, bytes(7)), "has 8 bytes"),
    "too many bytes for the shape": (file_of({"a": tensor(offsets=[0, 9])}, bytes(9)), "has 8 bytes"),
    "the same bytes twice": (file_of({"a": tensor(), "b": tensor()}, bytes(8)), "overlaps"),
    "overlap": (file_of({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)), "overlaps"),
    "a gap": (file_of({"a": tensor(), "b": tensor(offsets=[12, 20])}, bytes(20)), "leaves 4 bytes"),
    "a gap in front": (file_of({"a": tensor(offsets=[4, 12])}, bytes(12)), "leaves 4 bytes after the header"),
    "data missing": (GOOD[:-1], "truncated"),
    "data left over": (GOOD + b"\0", "belong to no tensor"),
    "nothing but data": (file_of({}, b"\0"), "belong to no tensor"),
    "half a byte": (file_of({"a": tensor("F4", [3], [0, 1])}, bytes(1)), "ends within a byte"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused_with_what_is_wrong(lie: str) -> None:
    content, said = LIES[lie]
    with pytest.raises(InvalidHeader) as refused:
        read_header(io.BytesIO(content), file_bytes=len(content))
    assert said in refused.value.detail
    assert len(refused.value.detail) < 500


STRICTER = {"a name twice", "one field more", "metadata is null", "leading space"}
"""What the library lets pass, though two readers could understand it differently."""


@pytest.mark.parametrize("lie", LIES)
def test_the_formats_own_library_refuses_all_but_what_we_are_stricter_with(lie: str) -> None:
    try:
        safetensors.deserialize(LIES[lie][0])
    except safetensors.SafetensorError:
        assert lie not in STRICTER
    else:
        assert lie in STRICTER


class Drip:
    """A stream that gives a byte at a time and does not know how long it is."""

    def __init__(self, content: bytes) -> None:
        self.left = content

    def read(self, size: int, /) -> bytes:
        piece, self.left = self.left[: min(size, 1)], self.left[min(size, 1) :]
        return piece


def test_a_header_is_read_from_a_stream_of_unknown_length_and_leaves_it_at_the_data() -> None:
    stream = Drip(GOOD + b"more")
    header = read_header(stream)
    assert header.file_bytes == len(GOOD)
    assert stream.left == bytes(8) + b"more"


@pytest.mark.parametrize(
    "lie", ["within the length field", "length beyond the cap", "length beyond the file", "not JSON"]
)
def test_a_stream_of_unknown_length_is_checked_as_far_as_it_goes(lie: str) -> None:
    with pytest.raises(InvalidHeader):
        read_header(Drip(LIES[lie][0]))


def test_a_smaller_cap_refuses_a_header_before_it_is_read() -> None:
    with pytest.raises(InvalidHeader, match="more than the 16"):
        read_header(Drip(GOOD), max_header_bytes=16)


def test_bytes_that_came_in_so_far_are_enough_for_the_length() -> None:
    length = header_length(GOOD[:11])
    assert parse_header(GOOD[8 : 8 + length], file_bytes=len(GOOD)).by_name["a"].shape == (2,)


def test_every_dtype_of_the_format_is_known_with_its_size() -> None:
    for dtype, bits in DTYPE_BITS.items():
        content = file_of({"a": tensor(dtype, [8], [0, bits])}, bytes(bits))
        assert read_header(io.BytesIO(content), file_bytes=len(content)).tensors[0].elements == 8
        assert safetensors.deserialize(content)[0][1]["dtype"] == dtype


SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DTYPES = st.sampled_from(
    [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
)
TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.tuples(DTYPES, SHAPES), max_size=6
)


@given(
    tensors=TENSORS.filter(lambda given: "__metadata__" not in given), metadata=st.sampled_from([{}, {"format": "pt"}])
)
def test_headers_are_written_and_read_as_the_library_does(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in tensors.items()}
    theirs = as_bytes(arrays, metadata or None)
    read = read_header(io.BytesIO(theirs), file_bytes=len(theirs))
    written, first_bytes = write_header([(one.name, one.dtype, one.shape) for one in read.tensors], read.metadata)
    assert first_bytes == theirs[: read.data_start_bytes]
    assert written == read
