"""Against PyTorch's own casts: `tools/reference_casts.py` wrote down what they give."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.precision.formats import NUMBER_FORMATS
from app.precision.rounding import round_to

LINES = [json.loads(line) for line in Path(__file__).with_name("reference_casts.jsonl").read_text().splitlines()]

SATURATED = ("fp8_e4m3",)
"""What PyTorch 2.13 casts as `saturate` does: beyond 448 everything is 448, infinities too."""


@pytest.mark.parametrize("line", LINES, ids=[line["format"] for line in LINES])
def test_codes_are_those_of_pytorch(line: dict[str, Any]) -> None:
    values = np.frombuffer(bytes.fromhex(line["patterns"]), "<f4").astype(np.float64)
    layout = NUMBER_FORMATS[line["format"]].layout
    expected = np.frombuffer(bytes.fromhex(line["codes"]), f"<u{layout.bits // 8}")
    assert values.size > 1000
    found = round_to(layout, values, saturate=line["format"] in SATURATED)
    assert np.array_equal(found.codes, expected.astype(np.uint64))
