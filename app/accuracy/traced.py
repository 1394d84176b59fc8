"""A traced training step as a job."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from app.accuracy.jobs import Draft, Job, Reading, Unexpressed
from app.accuracy.rows import TracedRow
from app.errors import InvalidInput
from app.planning.architecture import Architecture, from_config
from app.planning.specs import OptimizerImplementation

_PRECISIONS = MappingProxyType({"bf16": "bf16", "fp32": "fp32", "autocast_bf16": "bf16-mixed"})
_OPTIMIZERS: Mapping[str, tuple[str, OptimizerImplementation]] = MappingProxyType(
    {
        "adamw": ("adamw", "foreach"),
        "adamw_fused": ("adamw", "fused"),
        "adamw_forloop": ("adamw", "for-loop"),
        "sgd": ("sgd", "foreach"),
        "sgd_momentum": ("sgd-momentum", "foreach"),
    }
)


def job_of(row: TracedRow) -> Job:
    """The job of one traced step: one GPU, Hugging Face's code. Raises Unexpressed with the reason where there is none.

    On fake tensors of a bf16 or autocast step, `sdpa` runs the flash kernels wherever they exist, and saves what they
    save.
    """
    if row.precision not in _PRECISIONS or row.optimizer not in _OPTIMIZERS:
        raise Unexpressed(f"precision {row.precision} or optimizer {row.optimizer} has no word in a request")
    optimizer, implementation = _OPTIMIZERS[row.optimizer]
    draft = Draft(Reading("traced", "tensors"), architecture=_architecture(row.config))
    draft.training = {
        "framework": "transformers",
        "precision": _PRECISIONS[row.precision],
        "optimizer": optimizer,
        "optimizer_implementation": implementation,
        "micro_batch_size": row.batch,
        "sequence_length": row.seq,
        "recompute": "full" if row.gradient_checkpointing else "none",
        "attention": row.attention,
    }
    return draft.job()


@cache
def _architecture(name: str) -> Architecture:
    file = files("app.catalog") / "models" / name
    if not file.is_file():
        raise Unexpressed(f"the catalogue has no {name}")
    try:
        return from_config(json.loads(file.read_text(encoding="utf-8")), name=name.removesuffix(".json"))
    except InvalidInput as error:
        raise Unexpressed(error.detail) from error
