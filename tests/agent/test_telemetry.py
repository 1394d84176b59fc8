"""The wire types: what the agent writes, FastAPI reads as its strict body, and nothing else is let in."""

import copy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st

from app.telemetry import (
    GpuMemory,
    GpuProcess,
    GpuReading,
    GpuUtilization,
    Node,
    NodeReport,
    ReportBatch,
    parse_timestamp,
    to_json,
)

INT64 = 2**63 - 1


def full_report() -> NodeReport:
    """A report in which every field has a value."""
    return NodeReport(
        node=Node(
            name="gpu-node-1",
            agent_version="0.1.0",
            driver_version="590.48.01",
            cuda_version="13.1",
            pool="training",
            labels={"zone": "eu-1", "team/owner": "Straße"},
            demo=True,
        ),
        boot_id="2f1c9e02-7f2d-4c0e-9a55-6f6b2f6f0c11",
        sequence=7,
        sampled_at=datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC),
        gpus=(
            GpuReading(
                uuid="GPU-3f0c1a52-8d94-4c6e-9a35-0c7f1d2e6b01",
                index=0,
                name="NVIDIA H100 80GB HBM3",
                memory=GpuMemory(total_bytes=100, used_bytes=30, free_bytes=60, reserved_bytes=10),
                utilization=GpuUtilization(gpu_percent=97, memory_percent=41),
                power_watts=631.95,
                power_limit_watts=700.0,
                temperature_celsius=59,
                pci_bus_id="00000000:19:00.0",
                mig_mode="disabled",
                processes=(GpuProcess(pid=4242, used_memory_bytes=30, name="python"),),
                error=None,
            ),
            GpuReading(uuid=None, index=1, name=None, error="GPU is lost"),
        ),
        error=None,
    )


def body() -> dict[str, Any]:
    """The JSON of a batch of one full report, as the server parses it."""
    return json.loads(to_json(ReportBatch(reports=(full_report(),))))


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A FastAPI application, over HTTP, whose body is `ReportBatch` and which answers with what it understood."""
    application = FastAPI()

    @application.exception_handler(RequestValidationError)
    def refuse(_request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own handler repeats the input, and fails on one that cannot be written as JSON
        return JSONResponse([[list(fault["loc"]), fault["msg"]] for fault in error.errors()], 422)

    @application.post("/reports")
    def receive(batch: ReportBatch) -> dict[str, str]:
        return {"understood": to_json(batch).decode()}

    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with httpx.Client(base_url=f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}") as client:
        yield client
    server.should_exit = True
    thread.join()


def post(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("/reports", content=content, headers={"Content-Type": "application/json"})


def test_what_the_agent_writes_the_server_understands(http):
    content = to_json(ReportBatch(reports=(full_report(),)))

    response = post(http, content)

    assert response.status_code == 200, response.text
    assert response.json()["understood"] == content.decode()
    assert b'"sampled_at":"2026-01-31T12:00:00.250000Z"' in content


def at(document: dict[str, Any], path: str) -> tuple[Any, str | int]:
    """The container that holds the value at `path`, and the key to it."""
    *containers, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place: Any = document
    for step in containers:
        place = place[step]
    return place, last


REPORT, GPU, NODE = "reports/0", "reports/0/gpus/0", "reports/0/node"
INTEGERS = {
    f"{REPORT}/sequence": (0, INT64),
    f"{GPU}/index": (0, 2**31 - 1),
    f"{GPU}/memory/total_bytes": (60, INT64),
    f"{GPU}/memory/used_bytes": (0, 100),
    f"{GPU}/memory/free_bytes": (0, 100),
    f"{GPU}/memory/reserved_bytes": (0, 100),
    f"{GPU}/utilization/gpu_percent": (0, 100),
    f"{GPU}/utilization/memory_percent": (0, 100),
    f"{GPU}/temperature_celsius": (-273, 1_000),
    f"{GPU}/processes/0/pid": (0, 2**32 - 1),
    f"{GPU}/processes/0/used_memory_bytes": (0, INT64),
}
FLOATS = {f"{GPU}/power_watts": (0, 100_000), f"{GPU}/power_limit_watts": (0, 100_000)}
TEXTS = [
    f"{REPORT}/boot_id",
    f"{REPORT}/error",
    f"{NODE}/name",
    f"{NODE}/agent_version",
    f"{NODE}/driver_version",
    f"{NODE}/cuda_version",
    f"{NODE}/pool",
    f"{NODE}/labels/zone",
    f"{GPU}/uuid",
    f"{GPU}/name",
    f"{GPU}/pci_bus_id",
    f"{GPU}/mig_mode",
    f"{GPU}/error",
    f"{GPU}/processes/0/name",
]
WRONG = [
    *((path, wrong) for path in INTEGERS for wrong in ("1", True, 1.0, 1.5, 10**40, [1])),
    *((path, least - 1) for path, (least, _) in INTEGERS.items()),
    *((path, most + 1) for path, (_, most) in INTEGERS.items()),
    *((path, wrong) for path in FLOATS for wrong in ("1.0", True, 10**400)),
    *((path, least - 1) for path, (least, _) in FLOATS.items()),
    *((path, most + 1) for path, (_, most) in FLOATS.items()),
    *((path, wrong) for path in TEXTS for wrong in (1, True, ["a"], "a\0b", "\ud800", "x" * 3_000)),
    *((path, "") for path in TEXTS if not path.startswith(f"{NODE}/labels")),
    *((f"{NODE}/name", wrong) for wrong in ("-a", "a/b", "a b", "ä", "a\n", None)),
    *((f"{NODE}/pool", wrong) for wrong in ("-a", "a b", "x" * 64)),
    *((f"{NODE}/labels", wrong) for wrong in ({"a b": "c"}, {"": "c"}, {"a": None}, {"a": 1}, None, [])),
    (f"{NODE}/labels", {f"key-{number}": "" for number in range(65)}),
    (f"{NODE}/demo", 1),
    (f"{NODE}/demo", "true"),
    (f"{NODE}/demo", None),
    *((f"{REPORT}/sampled_at", wrong) for wrong in (1_700_000_000, "1700000000", None, True, "2026-01-31")),
    (f"{REPORT}/sampled_at", "2026-01-31T12:00:00"),
    (f"{REPORT}/sampled_at", "2026-02-30T12:00:00Z"),
    (f"{REPORT}/sampled_at", "0001-01-01T00:00:00+12:00"),
    (f"{REPORT}/sampled_at", "9999-12-31T23:59:59-12:00"),
    (f"{REPORT}/sampled_at", "٢٠٢٦-01-31T12:00:00Z"),
    (f"{GPU}/mig_mode", "on"),
    (f"{GPU}/pci_bus_id", "19:00.0"),
    (f"{GPU}/uuid", None),
    (f"{GPU}/uuid", "GPU 1"),
    (f"{GPU}/processes", {}),
    (f"{GPU}/memory", []),
    (f"{REPORT}/gpus", None),
    (f"{REPORT}/boot_id", "a/b"),
    ("reports/0/gpus/1/index", 0),
    ("reports/0/gpus/1/uuid", "GPU-3f0c1a52-8d94-4c6e-9a35-0c7f1d2e6b01"),
    ("reports", []),
    ("reports", {}),
    ("reports", None),
]


@pytest.mark.parametrize(("path", "wrong"), WRONG, ids=lambda value: repr(value)[:40])
def test_a_wrong_value_is_refused(http, path, wrong):
    document = body()
    place, key = at(document, path)
    assert place[key] != wrong or type(place[key]) is not type(wrong)
    place[key] = wrong

    response = post(http, json.dumps(document).encode())

    assert response.status_code == 422, response.text
    location, sentence = response.json()[0]
    assert location[0] == "body"
    for said, step in zip(location[1:], path.split("/"), strict=False):  # an error of a whole object ends earlier
        assert str(said) == step
    assert sentence


@pytest.mark.parametrize(("path", "bounds"), (INTEGERS | FLOATS).items(), ids=lambda value: repr(value)[:50])
def test_the_bounds_themselves_are_accepted(http, path, bounds):
    for value in bounds:
        document = body()
        place, key = at(document, path)
        place[key] = value
        if path == f"{GPU}/index":
            document["reports"][0]["gpus"][1]["index"] = 1_000
        response = post(http, json.dumps(document).encode())
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "path", ["", REPORT, NODE, GPU, f"{GPU}/memory", f"{GPU}/utilization", f"{GPU}/processes/0"], ids=lambda path: path
)
def test_an_unknown_field_is_refused_everywhere(http, path):
    document = body()
    place, key = at(document, f"{path}/used_byte".removeprefix("/"))
    place[key] = 1

    assert post(http, json.dumps(document).encode()).status_code == 422


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_number_that_is_none_is_refused(http, number):
    content = to_json(ReportBatch(reports=(full_report(),))).replace(b"631.95", number.encode())

    assert post(http, content).status_code == 422


@pytest.mark.parametrize(
    ("path", "count", "allowed"),
    [
        ("reports", 1_000, True),
        ("reports", 1_001, False),
        (f"{REPORT}/gpus", 64, True),
        (f"{REPORT}/gpus", 65, False),
        (f"{GPU}/processes", 1_024, True),
        (f"{GPU}/processes", 1_025, False),
    ],
)
def test_how_many_of_each_are_taken(http, path, count, allowed):
    document = body()
    if path == "reports":
        document["reports"][0]["gpus"] = []
    place, key = at(document, path)
    place[key] = [copy.deepcopy(place[key][0]) for _ in range(count)]
    if path.endswith("gpus"):
        for index, gpu in enumerate(place[key]):
            gpu |= {"index": index, "uuid": f"GPU-{index}"}

    assert post(http, json.dumps(document).encode()).status_code == (200 if allowed else 422)


def test_a_reading_may_be_left_out(http):
    document = body()
    document["reports"][0]["gpus"] = [{"uuid": "GPU-1", "index": 0, "name": None}]
    document["reports"][0]["node"] = {"name": "a", "agent_version": "1"}
    del document["reports"][0]["error"]

    response = post(http, json.dumps(document).encode())

    assert response.status_code == 200, response.text
    understood = json.loads(response.json()["understood"])["reports"][0]
    assert understood["gpus"][0]["memory"] is None
    assert understood["node"]["labels"] == {}
    assert understood["node"]["demo"] is False


def test_any_offset_is_taken_and_kept_as_utc(http):
    document = body()
    document["reports"][0]["sampled_at"] = "2026-01-31t13:30:00.123456789+01:30"

    understood = json.loads(post(http, json.dumps(document).encode()).json()["understood"])

    assert understood["reports"][0]["sampled_at"] == "2026-01-31T12:00:00.123456Z"


def test_a_report_cannot_be_built_with_a_naive_or_foreign_time():
    for tzinfo in (None, timezone(timedelta(hours=1))):
        with pytest.raises(ValueError, match="sampled_at must be in UTC"):
            NodeReport(
                node=full_report().node,
                boot_id="a",
                sequence=0,
                sampled_at=datetime(2026, 1, 31, tzinfo=tzinfo),
                gpus=(),
            )


def test_every_field_is_described_with_its_unit_in_openapi(http):
    schemas = http.get("/openapi.json").json()["components"]["schemas"]

    ours = [name for name in schemas if name in {"Node", "NodeReport", "ReportBatch"} or name.startswith("Gpu")]
    assert len(ours) == 7
    for name in ours:
        assert schemas[name]["description"]
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description"), f"{name}.{field} is not described"
        assert schemas[name]["additionalProperties"] is False
    assert schemas["NodeReport"]["properties"]["sampled_at"]["format"] == "date-time"


def test_the_wire_types_need_the_standard_library_alone():
    script = (
        "import sys; before = set(sys.modules); import app.telemetry; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "['app']"


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_survives_being_written_and_read(moment):
    report = NodeReport(node=full_report().node, boot_id="a", sequence=0, sampled_at=moment, gpus=())

    assert parse_timestamp(json.loads(to_json(report))["sampled_at"]) == moment
