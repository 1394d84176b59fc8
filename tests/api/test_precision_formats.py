import httpx

from app.precision.formats import NUMBER_FORMATS


def test_all_formats_are_listed(client: httpx.Client) -> None:
    items = client.get("/v1/precision/formats", params={"limit": 200}).json()["items"]
    assert [item["name"] for item in items] == sorted(NUMBER_FORMATS)


def test_a_format_tells_its_fields_limits_and_costs(client: httpx.Client) -> None:
    found = client.get("/v1/precision/formats/fp8_e4m3").json()
    assert (found["bits"], found["sign_bits"], found["exponent_bits"], found["mantissa_bits"]) == (8, 1, 4, 3)
    assert (found["bias"], found["largest"], found["smallest"]) == (7, 448.0, -448.0)
    assert (found["special_values"], found["overflow"]) == (["-0", "NaN"], "nan")
    assert {unit["architectures"]: unit["since"] for unit in found["native"]} == {
        "Ada, Hopper, Blackwell and later": 2022,
        "CDNA 4 (MI350)": 2025,
    }
    assert all(source["url"] for source in found["sources"])


def test_a_block_format_tells_its_scales(client: httpx.Client) -> None:
    found = client.get("/v1/precision/formats/nvfp4").json()
    assert found["scales"] == [
        {"format": "fp8_e4m3", "elements": 16, "shape": "16 in a row"},
        {"format": "fp32", "elements": None, "shape": "tensor"},
    ]
    assert (found["bytes_per_parameter"], found["bytes_per_tensor"]) == (0.5625, 4)


def test_formats_by_what_a_gpu_computes_in(client: httpx.Client) -> None:
    def names(version: str) -> set[str]:
        answer = client.get("/v1/precision/formats", params={"compute_capability": version, "limit": 200})
        return {item["name"] for item in answer.json()["items"]}

    assert names("7.0") == {"fp16", "fp32", "fp64", "int8", "uint8"}
    assert names("10.0") - names("9.0") == {
        "fp4_e2m1",
        "fp6_e2m3",
        "fp6_e3m2",
        "mxfp4",
        "mxfp6",
        "mxfp6_e3m2",
        "mxfp8",
        "mxfp8_e5m2",
        "nvfp4",
    }


def test_an_unknown_format_is_a_problem(client: httpx.Client) -> None:
    answer = client.get("/v1/precision/formats/fp8")
    assert answer.status_code == 404
    assert "nearest: fp8_e" in answer.json()["detail"]
