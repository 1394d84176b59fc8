from typing import Any

import httpx
import pytest

PATH = "/v1/precision/model-conversions"
GPT2 = {"id": "openai-community/gpt2"}


def test_a_published_checkpoint_to_the_byte(client: httpx.Client) -> None:
    """`total_size` of the index of openai/gpt-oss-20b: experts in MXFP4, the rest in BF16."""
    body = {
        "model": {"id": "openai/gpt-oss-20b"},
        "from": "bf16",
        "to": "mxfp4",
        "keep": ["word_embedding", "lm_head", "attention", "norm", "router"],
    }
    found = client.post(PATH, json=body).json()
    assert found["storage"]["bytes_after"] == 13_761_264_768
    assert "b200" in found["native"]["gpus"]
    assert {risk["kind"] for risk in found["risks"]} == {"underflow", "resolution", "outliers"}


@pytest.mark.parametrize(
    ("body", "pointer", "word"),
    [
        ({"model": GPT2, "from": "bf16", "to": "mxfp5"}, "/to", "nearest: mxfp"),
        ({"model": GPT2, "from": "bf61", "to": "mxfp4"}, "/from", "nearest: bf16"),
        ({"model": GPT2, "from": "bf16", "to": "bf16"}, "/to", "already"),
        ({"model": GPT2, "from": "bf16", "to": "mxfp4", "keep": ["norms"]}, "/keep/0", "nearest: norm"),
        ({"model": {"id": "gpt3"}, "from": "bf16", "to": "mxfp4"}, "/model/id", "nearest"),
        (
            {"model": GPT2, "from": "bf16", "to": "mxfp4", "scheme": {"kind": "affine"}},
            "/scheme",
            "takes no affine scheme",
        ),
        (
            {
                "model": GPT2,
                "from": "bf16",
                "to": "int8",
                "scheme": {"kind": "symmetric", "granularity": "channel", "channel_axis": 3},
            },
            "/scheme/channel_axis",
            "axis 3 does not exist",
        ),
    ],
)
def test_a_wrong_request_is_pointed_at(client: httpx.Client, body: dict[str, Any], pointer: str, word: str) -> None:
    answer = client.post(PATH, json=body)
    assert answer.status_code == 422
    [fault] = answer.json()["errors"]
    assert fault["pointer"] == pointer
    assert word in fault["detail"]
