"""Our counts beside what the real classes of transformers hold, to the last parameter and by component.

The reference lines are made by `tools/reference_counts.py` with transformers 5.23.0 on torch's meta device.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from app.planning.architecture import from_config

CASES = [
    json.loads(line)
    for file in sorted((Path(__file__).parent / "reference_counts").glob("*.jsonl"))
    for line in file.read_text().splitlines()
]


def name_of(case: dict[str, Any]) -> str:
    return f"{case['config']['model_type']}-{case['total']}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_count_equals_the_real_class(case: dict[str, Any]) -> None:
    model = from_config(case["config"])
    counted = {count.name: count.parameters for count in model.components if count.parameters}
    assert counted == case["components"]
    assert model.parameters == case["total"]
    assert model.trainable_parameters == case["trainable"]
    assert model.embedding_parameters == case["embedding"]
    assert model.active_parameters == case["active"]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_linear_layers_are_called_and_shaped_as_in_the_real_class(case: dict[str, Any]) -> None:
    found: dict[str, list[int]] = {}
    for layers in from_config(case["config"]).linear_layers:
        if layers.kind not in ("linear", "output"):
            continue
        rows = found.setdefault(layers.name.rpartition(".")[2], [0, 0])
        rows[0] += layers.count * layers.copies
        rows[1] += layers.count * layers.copies * (layers.inputs + layers.outputs)
    assert found == case["linear"]
