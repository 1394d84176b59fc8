"""The nanotron benchmark behind the ultra-scale playbook: Llama-like models on H100, plain data and one counter."""

from collections.abc import Mapping

from app.accuracy.jobs import Draft, Reading
from app.accuracy.rows import MeasuredRow


def rule(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """Base config: tensor parallel with reduce-scatter, which splits norms over the sequence; nothing recomputed.

    The figure is rank 0's, so of the first pipeline stage. nanotron logs both allocated and reserved; runs that differ
    only in the number of replicas differ by up to 5 %, which reserved memory does and allocated does not.
    """
    draft.training["precision"] = "bf16-mixed"
    draft.training["recompute"] = "none"
    if (row.tp or 1) > 1:
        draft.parallelism["sequence_parallel"] = True
    if row.measured_metric == "peak_mem_unspecified":
        draft.reading = Reading("unspecified", "reserved", stage=0)
