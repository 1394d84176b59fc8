"""SimuMax's validation runs: Megatron on eight B200, the heaviest of all ranks or the last stage."""

from collections.abc import Mapping

from app.accuracy.jobs import Draft
from app.accuracy.rows import MeasuredRow


def rule(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """`recompute` "full block 0 layers" is none, which the column says; `_cef` is Megatron's fused cross-entropy."""
    draft.training["fused_cross_entropy"] = "_cef" in row.notes
