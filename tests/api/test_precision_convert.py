from typing import Any

import httpx
import pytest


def ask(client: httpx.Client, body: str | dict[str, Any]) -> httpx.Response:
    if isinstance(body, dict):
        return client.post("/v1/precision/convert", json=body)
    return client.post("/v1/precision/convert", content=body, headers={"Content-Type": "application/json"})


def test_pi(client: httpx.Client) -> None:
    answer = ask(client, {"values": [3.141592653589793], "from": "fp32", "to": ["fp16", "bf16", "int8"]})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [(result["to"], result["values"][0]["stored"]) for result in results] == [
        ("fp16", 3.140625),
        ("bf16", 3.140625),
        ("int8", 3.0),
    ]
    assert results[0]["values"][0]["input"] == 3.141592653589793
    assert results[0]["values"][0]["fields"] == {"sign": "0", "exponent": "10000", "mantissa": "1001001000"}
    assert {"max_absolute_error", "mean_squared_error", "sqnr_db", "overflows", "underflows"} <= results[0][
        "summary"
    ].keys()


def test_json_numbers_are_the_decimals_they_are_written_as(client: httpx.Client) -> None:
    """A float64 on the way would make the first the very half, and the others infinity, zero and unsigned."""
    body = '{"values": [1.00000005960464477626, 1e400, 1e-400, -0, -0.0], "from": "fp32", "to": ["fp32"]}'
    values = ask(client, body).json()["results"][0]["values"]
    assert values[0]["bits"] == "00111111100000000000000000000001"
    assert [value["input"] for value in values[:3]] == [1 + 2**-24, "1e400", 0.0]
    assert [value["stored"] for value in values[1:3]] == ["Infinity", 0.0]
    assert [value["bits"][0] for value in values[3:]] == ["1", "1"]
    statuses = [value["status"] for value in ask(client, body).json()["source"]["values"]]
    assert statuses == ["rounded", "overflow", "underflow", "exact", "exact"]


def test_infinities_and_nan_are_spelled_alike_in_both_directions(client: httpx.Client) -> None:
    words = ["NaN", "Infinity", "-Infinity"]
    values = ask(client, {"values": words, "from": "fp32", "to": ["bf16"]}).json()["results"][0]["values"]
    assert [value["stored"] for value in values] == words


@pytest.mark.parametrize(
    ("body", "pointer", "word"),
    [
        ({"values": ["x"], "from": "fp32", "to": ["fp16"]}, "/values/0", "hexadecimal"),
        ({"values": [None], "from": "fp32", "to": ["fp16"]}, "/values/0", "number"),
        ({"values": [], "from": "fp32", "to": ["fp16"]}, "/values", "at least 1"),
        ({"values": [1], "from": "fp32", "to": []}, "/to", "at least 1"),
        ({"values": [1], "from": "float32", "to": ["fp16"]}, "/from", "unknown format"),
        ({"values": [1], "from": "fp32", "to": ["fp16", "bf8"]}, "/to/1", "nearest: bf16"),
        ({"values": [1], "from": "fp32", "to": ["int8"], "scheme": {"kind": "symetric"}}, "/scheme/kind", "symmetric"),
        (
            {"values": [1], "from": "fp32", "to": ["int8"], "scheme": {"percentil": 3}},
            "/scheme/percentil",
            "percentile",
        ),
        ({"values": [1], "from": "fp32", "to": ["int8"], "scheme": {"seed": 1}}, "/scheme", "rounding stochastic"),
        ({"values": [1], "from": "fp32", "to": ["int8"], "scheme": {"shape": [2]}}, "/scheme/shape", "not 1"),
    ],
)
def test_a_wrong_request_is_pointed_at(client: httpx.Client, body: dict[str, Any], pointer: str, word: str) -> None:
    answer = ask(client, body)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["errors"][0]["pointer"] == pointer
    assert word in problem["errors"][0]["detail"]
