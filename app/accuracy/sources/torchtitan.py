"""torchtitan's benchmark tables and logs: FSDP2 over FP32 shards with bf16 compute."""

import re
from collections.abc import Mapping

from app.accuracy import words
from app.accuracy.jobs import Draft
from app.accuracy.rows import MeasuredRow

_BEFORE_COMPILED_LOSS = ("2271b6386", "3537666a9", "60e7129f8", "6b2f67313", "88247277c", "e0634d9dc")
"""Commits of 2024 and early 2025, whose `compile` covers the blocks alone."""


def rule(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """FSDP shards over data and context ranks; per-op selective checkpointing is torchtitan's default."""
    if row.commit_if_known.startswith(_BEFORE_COMPILED_LOSS) and words.compiled(row.notes):
        draft.training |= {"compile": True, "compile_loss": False}
    if not row.recompute:
        draft.training["recompute"] = "selective"
        draft.assume("recompute: selective (op), torchtitan's default", decisive=True)
    if re.search(r"graph.?trainer", f"{row.model_name} {row.notes}".lower()):
        draft.training |= {"compile": True, "fused_cross_entropy": True}
        draft.assume("GraphTrainer compiles the whole step, with a loss in chunks of tokens", decisive=True)
    if re.search(r"seq_len not stated", row.notes):
        draft.assume("sequence length: the default of the config", decisive=True)
