"""The files of a checkpoint's folder besides its weights: the index with its sums, and config.json with its dtypes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from app.checkpoints.plan import SCALED, Format, ShardPlan, Step

_TORCH_NAMES: Mapping[Format, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_DTYPE_KEYS = ("torch_dtype", "dtype")
_QUANTIZATION = "quantization_config"


def index_of(index: Mapping[str, Any], plans: tuple[ShardPlan, ...]) -> bytes:
    """The index of the converted shards: its other metadata stay, `total_size` counts the bytes of all tensors."""
    where = {tensor.name: plan.shard.name for plan in plans for tensor in plan.header.tensors}
    total = sum(plan.header.data_bytes for plan in plans)
    metadata = {**index.get("metadata", {}), "total_size": total}
    return _text({**index, "metadata": metadata, "weight_map": dict(sorted(where.items()))})


def config_of(config: Mapping[str, Any], to: Format, steps: tuple[Step, ...]) -> tuple[bytes | None, tuple[str, ...]]:
    """config.json for the converted weights (None: as it is) and sentences that say what changed, or ought to.

    A cast sets `torch_dtype` or `dtype`, wherever the file has them, and takes `quantization_config` away when nothing
    quantised is left. FP8 E4M3 and int8 get a `quantization_config` as compressed-tensors writes it.
    """
    changed = json.loads(json.dumps(config))
    said = []
    if to in SCALED:
        if to == "fp8_e5m2":
            sentence = (
                "config.json is as it was: compressed-tensors, whose scales these are, describes FP8 as E4M3 only"
            )
            return None, (sentence,)
        changed[_QUANTIZATION] = _quantization(to, steps)
        said.append(
            f"config.json: {_QUANTIZATION} says {changed[_QUANTIZATION]['format']}, as compressed-tensors has it"
        )
    else:
        was = sorted({holder[key] for holder, key in _dtypes(changed) if holder[key] != _TORCH_NAMES[to]})
        for holder, key in _dtypes(changed):
            holder[key] = _TORCH_NAMES[to]
        if was:
            said.append(f"config.json: the dtype is {_TORCH_NAMES[to]} instead of {', '.join(was)}")
        if _QUANTIZATION in changed and not any(step.tensor.dtype == step.dtype and _is_scaled(step) for step in steps):
            del changed[_QUANTIZATION]
            said.append(f"config.json: {_QUANTIZATION} is gone, since nothing is quantised any more")
    return (_text(changed) if said else None), tuple(said)


def _is_scaled(step: Step) -> bool:
    return step.tensor.dtype in ("I8", "F8_E4M3", "F8_E5M2")


def _dtypes(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a config names the dtype of weights: at the top, or in the config of a part."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _DTYPE_KEYS and inner in ("float64", *_TORCH_NAMES.values()):
                yield value, key
            elif key != _QUANTIZATION:
                yield from _dtypes(inner)


def _quantization(to: Format, steps: tuple[Step, ...]) -> dict[str, Any]:
    """What compressed-tensors reads: every linear layer but those listed is quantised, activations as they come."""
    kind, name, strategy = (
        ("int", "int-quantized", "channel") if to == "int8" else ("float", "float-quantized", "tensor")
    )
    weights = {"num_bits": 8, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False}
    activations = {"num_bits": 8, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}
    whole = {step.tensor.name for step in steps if step.grid is None and len(step.tensor.shape) > 1}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations, "format": name}
        },
        # a head that shares the embedding's weights is a layer without a tensor of its own
        "ignore": sorted({"lm_head"} | {tensor.removesuffix(".weight") for tensor in whole}),
    }


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
