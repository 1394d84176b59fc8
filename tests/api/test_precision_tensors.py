import io
import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from live_service import LiveService, running

from app.api.deps import MAX_TENSOR_READERS
from app.main import create_app
from app.settings import Settings

PATH = "/v1/precision/tensors"
OCTETS = {"Content-Type": "application/octet-stream"}


def send(client: httpx.Client, body: bytes | Iterator[bytes], **query: Any) -> httpx.Response:
    return client.post(PATH, params={"to": "bf16", **query}, content=body, headers=OCTETS)


def in_pieces(data: bytes, size: int = 70_001) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {
        "a.weight": generator.standard_normal((300, 200)).astype(np.float32),
        "b.weight": generator.standard_normal((64, 128)).astype(ml_dtypes.bfloat16),
        "c.positions": np.arange(12),
        "d.norm": generator.standard_normal(1000).astype(np.float16),
        "e.nothing": np.zeros((0, 4), np.float32),
    }


@pytest.fixture
def file(tensors: dict[str, np.ndarray]) -> bytes:
    return safetensors.numpy.save(tensors)


def test_a_file_in_pieces(client: httpx.Client, file: bytes, tensors: dict[str, np.ndarray]) -> None:
    answer = send(client, in_pieces(file), to="fp8_e4m3", kind="symmetric", scale_floats="true")
    assert answer.status_code == 200, answer.text
    report = answer.json()
    found = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert found.keys() == tensors.keys()
    weight = tensors["a.weight"].astype(np.float64)
    scale = np.float64(np.float32(np.abs(weight).max() / 448))
    stored = (weight / scale).astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    errors = found["a.weight"]["errors"]
    assert errors["max_absolute_error"] == pytest.approx(np.abs(weight - stored).max())
    assert errors["mean_squared_error"] == pytest.approx(np.square(weight - stored).mean(), rel=1e-6)
    assert found["a.weight"]["scales"]["values"] == [scale]
    assert (found["a.weight"]["bytes_before"], found["a.weight"]["bytes_after"]) == (240_000, 60_004)
    assert found["b.weight"]["dtype"] == "BF16"
    assert found["c.positions"]["errors"] is None
    assert found["e.nothing"]["errors"]["values"] == 0
    totals = report["totals"]
    assert (totals["tensors"], totals["converted"]) == (5, 4)
    assert totals["errors"]["values"] == 60_000 + 8_192 + 1_000
    assert totals["bytes_before"] == 240_000 + 16_384 + 96 + 2_000


@pytest.mark.parametrize(
    "query",
    [
        {"to": "fp16"},
        {"to": "int8", "kind": "affine", "granularity": "channel"},
        {"to": "int8", "kind": "affine", "granularity": "channel", "channel_axis": 1},
        {"to": "int4", "kind": "symmetric", "calibration": "mse"},
        {"to": "int4", "kind": "symmetric", "granularity": "block", "block_size": 32},
        {"to": "uint8", "kind": "affine", "calibration": "percentile", "percentile": 99.5},
        {"to": "mxfp4", "rounding": "stochastic", "seed": 5},
        {"to": "nvfp4"},
        {"to": "nf4-double"},
        {"to": "fp8_e4m3_128x128"},
    ],
)
def test_what_comes_in_is_converted_as_what_is_sent_as_json(client: httpx.Client, query: dict[str, Any]) -> None:
    array = np.random.default_rng(2).standard_normal((48, 96)).astype(np.float32)
    report = send(client, in_pieces(safetensors.numpy.save({"w": array})), **query).json()
    scheme = {name: value for name, value in query.items() if name != "to"}
    body = {
        "values": [float(value) for value in array.reshape(-1)],
        "from": "fp32",
        "to": [query["to"]],
        "scheme": {**scheme, "shape": [48, 96]},
    }
    [result] = client.post("/v1/precision/convert", json=body).json()["results"]
    [tensor] = report["tensors"]
    assert tensor["errors"] == result["summary"]
    if tensor["scales"] is not None:
        few = result["scales"]["count"] <= 16
        assert tensor["scales"] == {**result["scales"], **({} if few else {"values": None, "zero_points": None})}


def test_tensors_without_channels_have_one_scale(client: httpx.Client) -> None:
    tensors = {"logit_scale": np.array(2.5, np.float32), "proj": np.eye(4, 6, dtype=np.float32)}
    answer = send(client, safetensors.numpy.save(tensors), to="int8", kind="symmetric", granularity="channel")
    assert answer.status_code == 200, answer.text
    found = {tensor["name"]: tensor for tensor in answer.json()["tensors"]}
    assert (found["logit_scale"]["scales"]["count"], found["logit_scale"]["bytes_after"]) == (1, 1 + 4)
    assert (found["proj"]["scales"]["count"], found["proj"]["bytes_after"]) == (4, 24 + 16)


def test_an_array_of_numpy(client: httpx.Client) -> None:
    for kind in ("<f4", ">f8", "<f2"):
        array = np.random.default_rng(3).standard_normal((30, 40)).astype(kind)
        stream = io.BytesIO()
        np.save(stream, array)
        report = send(client, stream.getvalue(), to="bf16").json()
        [tensor] = report["tensors"]
        values = array.astype(np.float64)
        stored = array.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
        assert (tensor["name"], tensor["shape"]) == ("array", [30, 40])
        assert tensor["errors"]["max_absolute_error"] == pytest.approx(np.abs(values - stored).max(), rel=1e-6)


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


NPY = io.BytesIO()
np.save(NPY, np.asfortranarray(np.ones((2, 3))))
NPY_OF_TEXT = io.BytesIO()
np.save(NPY_OF_TEXT, np.array(["a"]))


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "ends after 0 bytes"),
        (b"\x01\x00", "ends after 2 bytes"),
        (struct.pack("<Q", 100) + b"{}", "ends after 10 bytes"),
        (struct.pack("<Q", 2**60), "header claims 1,152,921,504,606,846,976 bytes"),
        (struct.pack("<Q", 2**24 + 1), "more than the 16,777,216"),
        (header({"a": entry([2], 0, 8)}, b"\0" * 7), "ends after"),
        (header({"a": entry([2], 0, 8)}, b"\0" * 9), "more bytes follow"),
        (header({"a": entry([3], 0, 8)}, b"\0" * 8), "12 bytes, but its data_offsets [0, 8] hold 8"),
        (header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}), 'overlaps with "a"'),
        (header({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}), 'leaves 4 bytes after "a"'),
        (header({"a": entry([2], 8, 16)}), "leaves 8 bytes after the header"),
        (header({"a": entry([2], 8, 0)}), "hold -8"),
        (header({"a": entry([-2], 0, 8)}), "shape"),
        (header({"a": entry([2**40, 2**40], 0, 8)}), "more bytes than can be counted"),
        (header({"a": entry([2.0], 0, 8)}), "shape"),  # type: ignore[list-item]
        (header({"a": entry([2], 0, 8, "F32X")}), 'unknown dtype "F32X"'),
        (header({"a": {"dtype": "F32"}}), "data_offsets"),
        (header({"a": 3}), "must be an object"),
        (struct.pack("<Q", 2) + b"[]", "{"),
        (struct.pack("<Q", 2) + b"{{", "not JSON"),
        (struct.pack("<Q", 4) + b'{"\xff"', "UTF-8"),
        (struct.pack("<Q", 15) + b'{"a":1,"a":2}  ', "twice"),
        (b"\x93NUMPY\x07\x00\x01\x00 ", "version 7"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "4,294,967,295 bytes"),
        (b"\x93NUMPY\x01\x00\x05\x00{bad}", "numpy.save"),
        (NPY.getvalue(), "Fortran"),
        (NPY_OF_TEXT.getvalue(), "float16"),
    ],
)
def test_a_file_that_is_not_what_it_says(client: httpx.Client, body: bytes, word: str) -> None:
    answer = send(client, body)
    assert answer.status_code == 400, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "/problems/malformed-tensors"
    assert word in problem["detail"]


@pytest.mark.parametrize(
    ("query", "parameter", "word"),
    [
        ({"to": "fp9"}, "to", "nearest"),
        ({"to": "int8"}, "kind", "symmetric or affine"),
        ({"to": "mxfp4", "kind": "symmetric"}, "kind", "own scales"),
        ({"to": "bf16", "kind": "symmetric"}, "kind", "scale_floats"),
        ({"to": "int8", "kind": "affine", "granularity": "channel", "channel_axis": 5}, "channel_axis", "a.weight"),
        ({"to": "nf4", "rounding": "stochastic"}, "rounding", "nearest"),
        ({"to": "bf16", "block_sise": 4}, "block_sise", "nearest: block_size"),
        ({"to": "int8", "kind": "symmetric", "block_size": 1}, "block_size", "greater"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused_by_parameter(
    client: httpx.Client, file: bytes, query: dict[str, Any], parameter: str, word: str
) -> None:
    answer = send(client, file, **query)
    assert answer.status_code == 422, answer.text
    [fault] = answer.json()["errors"]
    assert fault["parameter"] == parameter
    assert word in fault["detail"]


def test_other_media_types_are_refused(client: httpx.Client, file: bytes) -> None:
    for headers in ({"Content-Type": "application/json"}, {}, {**OCTETS, "Content-Encoding": "gzip"}):
        answer = client.post(PATH, params={"to": "bf16"}, content=file, headers=headers)
        assert answer.status_code == 415, headers


def test_a_file_may_be_larger_than_a_body_elsewhere(live: LiveService, client: httpx.Client) -> None:
    array = np.ones(live.service.settings.max_body_bytes, np.float32)
    answer = send(client, in_pieces(safetensors.numpy.save({"w": array})), to="nvfp4")
    assert answer.status_code == 200
    assert answer.json()["totals"]["errors"]["values"] == array.size
    too_large = client.post("/v1/precision/convert", content=b" " * array.size * 4, headers=OCTETS)
    assert too_large.status_code == 413


def test_an_answer_comes_through_though_the_rest_is_still_being_sent(live: LiveService) -> None:
    """A client that only listens once it has sent everything is not cut off before."""
    host, port = live.url.removeprefix("http://").split(":")
    rest = b"\0" * 30_000_000
    head = f"POST {PATH}?to=bf16 HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: {8 + len(rest)}\r\n\r\n".encode() + struct.pack("<Q", 2**50))
        connection.sendall(rest)
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"header claims" in answer


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the open files of the process by /proc")
def test_nothing_is_left_on_disk_or_open(client: httpx.Client, file: bytes) -> None:
    def spooled() -> int:
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum("(deleted)" in str(link) for link in links)

    before = spooled()
    assert send(client, in_pieces(file), to="nvfp4").status_code == 200
    assert send(client, in_pieces(file[:-1000]), to="nvfp4").status_code == 400
    assert spooled() == before


def test_clients_that_go_away_make_room(live: LiveService, client: httpx.Client, file: bytes) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    request = f"POST {PATH}?to=nvfp4 HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
    for _ in range(MAX_TENSOR_READERS):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{request}Content-Length: {len(file)}\r\n\r\n".encode() + file[: len(file) // 2])
    deadline = time.monotonic() + 10
    while (answer := send(client, file)).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert answer.status_code == 200


def test_who_stops_sending_makes_room(fresh_database: str, file: bytes) -> None:
    settings = Settings.from_environment({}, database_url=fresh_database, upload_idle_seconds="0.2")
    with running(create_app(settings), settings) as service, service.client() as client:
        host, port = service.url.removeprefix("http://").split(":")
        request = f"POST {PATH}?to=nvfp4 HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
        stalled = [socket.create_connection((host, int(port)), timeout=20) for _ in range(MAX_TENSOR_READERS)]
        for connection in stalled:
            connection.sendall(f"{request}Content-Length: {len(file)}\r\n\r\n".encode() + file[: len(file) // 2])
        for connection in stalled:
            with connection, connection.makefile("rb") as answer:
                assert b" 400 " in answer.readline()
                assert f"nothing came for 0.2 seconds after {len(file) // 2:,} bytes".encode() in answer.read()
        assert send(client, file).status_code == 200


def test_no_more_files_than_there_are_readers_for(live: LiveService, client: httpx.Client, file: bytes) -> None:
    readers = live.service.tensor_readers
    for _ in range(MAX_TENSOR_READERS):
        assert readers.acquire(blocking=False)
    try:
        answer = send(client, file)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
    finally:
        for _ in range(MAX_TENSOR_READERS):
            readers.release()
    assert send(client, file).status_code == 200


def test_the_operator_s_limits_hold(fresh_database: str, file: bytes, tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {},
        database_url=fresh_database,
        max_tensors_bytes="200 KiB",
        max_spool_bytes="8 KiB",
        spool_dir=tmp_path,
    )
    with running(create_app(settings), settings) as service, service.client() as client:
        assert send(client, file).status_code == 413
        assert send(client, in_pieces(file)).status_code == 413
        small = safetensors.numpy.save({"w": np.ones(3000, np.float32)})
        assert send(client, small, to="mxfp4").status_code == 200
        answer = send(client, small, to="nvfp4")
        assert answer.status_code == 422
        assert "TONNAGE_MAX_SPOOL_BYTES" in answer.json()["detail"]
    assert list(tmp_path.iterdir()) == []
