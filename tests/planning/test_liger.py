"""Training steps with Liger's kernels, traced on fake tensors with torch 2.13 and transformers 5.23.

Liger's Triton kernels do not run on fake tensors: the classes were patched with functions that save what Liger 0.8
saves, write gradients where it writes them, and walk over the logits in its chunks. Three layers, fused AdamW.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidInput
from app.planning.architecture import from_config
from app.planning.memory import MemoryEstimate, MemoryInputs, estimate
from app.planning.specs import Parallelism, Training

HERE = Path(__file__).parent
ROWS: list[dict[str, Any]] = json.loads((HERE / "traced_liger.json").read_text())
CONFIGS: dict[str, Any] = json.loads((HERE / "traced_configs.json").read_text())


def answer(config: dict[str, Any], **fields: Any) -> MemoryEstimate:
    training = Training.model_validate({"use_liger_kernel": True} | fields)
    return estimate(MemoryInputs(from_config(config), training, Parallelism(), None, None, "detailed"))


def traced_estimate(row: dict[str, Any]) -> MemoryEstimate:
    return answer(
        CONFIGS[row["config"]],
        precision="bf16-mixed" if row["precision"] == "autocast_bf16" else row["precision"],
        optimizer_implementation="fused",
        micro_batch_size=row["batch"],
        sequence_length=row["seq"],
        attention=row["attention"],
        recompute="full" if row["gradient_checkpointing"] else "none",
    )


def name_of(row: dict[str, Any]) -> str:
    return f"{row['config']}-{row['precision']}{'-recompute' if row['gradient_checkpointing'] else ''}"


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_peak_of_a_traced_step(row: dict[str, Any]) -> None:
    """Within 1.2 %: chunks of the loss are counted as T·h/V tokens, Liger rounds them up to a power of two."""
    per_gpu = traced_estimate(row).per_gpu
    assert per_gpu.total_bytes - per_gpu.framework_bytes == pytest.approx(row["peak_bytes"], rel=0.012)


@pytest.mark.parametrize("row", [row for row in ROWS if not row["gradient_checkpointing"]], ids=name_of)
def test_backward_of_a_traced_step(row: dict[str, Any]) -> None:
    """No chunks in backward: as exact as eager code."""
    peaks = [moment.allocated_bytes for moment in traced_estimate(row).moments if moment.phase.startswith("backward")]
    assert max(peaks) == pytest.approx(row["phase_peaks"]["s2.bwd"], rel=0.0005)


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        ("mixtral-8x7b-of-3-layers", {}, "the experts of mixtral are not estimated"),
        ("falcon-7b-of-3-layers", {}, "for falcon are not estimated, but those for exaone4, gemma"),
        ("mistral-7b-v0.1-of-3-layers", {"framework": "megatron"}, "megatron has its own kernels"),
    ],
)
def test_what_liger_cannot_patch_is_refused(config: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        answer(CONFIGS[config], **fields)
    assert [error.pointer for error in refused.value.errors] == ["/training/use_liger_kernel"]
