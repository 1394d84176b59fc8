"""Training steps with low-rank adapters, traced on fake tensors with torch 2.13, transformers 5.23 and PEFT 0.21.

traced_adapters.json holds two whole steps of each row: models of a few layers, most of them with a small vocabulary so
that the blocks and not the logits are the peak. Without gradient clipping; adapters without dropout; sdpa attention.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from app.planning.architecture import from_config
from app.planning.memory import MemoryEstimate, MemoryInputs, estimate
from app.planning.specs import Lora, Parallelism, Training

TRACED: dict[str, Any] = json.loads(Path(__file__).with_name("traced_adapters.json").read_text())
ROWS: list[dict[str, Any]] = TRACED["rows"]


def name_of(row: dict[str, Any]) -> str:
    targets = row["target_modules"]
    parts = [row["config"], targets if isinstance(targets, str) else "+".join(targets), f"rank-{row['rank']}"]
    parts += [row["base"], "autocast" if row["autocast"] else f"{row['adapters']}-adapters"]
    return "-".join(parts + (["recompute"] if row["gradient_checkpointing"] else []))


def traced_estimate(row: dict[str, Any]) -> MemoryEstimate:
    targets = row["target_modules"]
    lora = Lora.model_validate(
        {
            "rank": row["rank"],
            "target_modules": targets if isinstance(targets, str) else tuple(targets),
            "base_format": row["base"],
            "adapter_format": row["adapters"],
        }
    )
    training = Training(
        method="lora",
        lora=lora,
        precision="bf16-mixed" if row["autocast"] else "bf16",
        micro_batch_size=row["batch"],
        sequence_length=row["seq"],
        attention="sdpa",
        recompute="full" if row["gradient_checkpointing"] else "none",
    )
    architecture = from_config(TRACED["configs"][row["config"]])
    return estimate(MemoryInputs(architecture, training, Parallelism(), None, None, "detailed"))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_peak_of_a_traced_step_with_adapters(row: dict[str, Any]) -> None:
    """Each row has its tolerance, and the reason for it under `reasons`."""
    answer = traced_estimate(row)
    allocated_bytes = answer.per_gpu.total_bytes - answer.per_gpu.framework_bytes
    assert allocated_bytes == pytest.approx(row["peak_bytes"], rel=row["tolerance"]), TRACED["reasons"][row["reason"]]


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_step_of_a_traced_optimizer_over_adapters(row: dict[str, Any]) -> None:
    """The frozen weights, the adapters with their gradients and states, and the step's scratch: within 0.15 %, since
    token ids are not counted.
    """
    peaks = {moment.phase: moment.allocated_bytes for moment in traced_estimate(row).moments}
    assert peaks["optimizer step"] == pytest.approx(row["phase_peaks"]["s2.opt"], rel=0.0015)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_upper_bound_covers_a_traced_step_with_adapters(row: dict[str, Any]) -> None:
    answer = traced_estimate(row)
    outside = sum(part.bytes for part in answer.components if part.name in ("cuda_context", "cublas_workspace"))
    assert answer.per_gpu.upper_bound_bytes - outside >= row["peak_bytes"]
