"""What becomes of each tensor of a checkpoint: into which dtype, with which scale, or why it stays as it is."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from app.checkpoints.dtypes import FLOATS
from app.checkpoints.faults import UnusableCheckpoint, UnusableOption
from app.checkpoints.header import Header, Tensor, write_header
from app.checkpoints.scales import (
    SCALE_DTYPES,
    SUFFIX,
    SUFFIXES,
    ZERO_POINT,
    Grid,
    channel_grid,
    scale_shape,
    stored_grid,
    tensor_grid,
)
from app.checkpoints.source import Checkpoint, Shard

Format = Literal["fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8"]

DTYPES: Mapping[Format, str] = MappingProxyType(
    {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8_e4m3": "F8_E4M3", "fp8_e5m2": "F8_E5M2", "int8": "I8"}
)
"""What a safetensors header calls each format."""

SCALED: Mapping[Format, str] = MappingProxyType({"fp8_e4m3": "tensor", "fp8_e5m2": "tensor", "int8": "channel"})
"""Formats with scales, and what one scale is for."""

_EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8")

_SENSITIVE = (
    ("bias", re.compile(r"bias")),
    ("norm", re.compile(r"norm|(^|[._])ln(_|\.|\d|$)")),
    ("embedding", re.compile(r"(^|[._])emb|embed|(^|\.)(wte|wpe|shared)\.")),
    ("head", re.compile(r"(^|[._])head(\.|$)|^output\.|(^|\.)(score|classifier|cls|pooler)\.")),
    ("router", re.compile(r"router|(^|[._])gate(\.(weight|wg\.weight|linear\.weight))?$")),
)
"""Names of what loses most and weighs least: it stays as it is in formats with scales, unless it is asked for."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to convert into, and how.

    `keep` and `include` are shell patterns over whole tensor names: what stays as it is, and what is converted to FP8
    or int8 though it would stay. `keep` wins. `saturate` None: FP8 and int8 saturate, other formats do not, as PyTorch.
    """

    to: Format
    keep: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    saturate: bool | None = None

    @property
    def saturates(self) -> bool:
        """Whether what lies beyond the largest number becomes that number."""
        return self.to in SCALED if self.saturate is None else self.saturate


@dataclass(frozen=True, slots=True)
class StoredScale:
    """A scale that lies beside a tensor in the input, perhaps in another shard."""

    shard: Shard
    tensor: Tensor
    grid: Grid


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one tensor. `dtype` is the one after; equal to the one before, the bytes are copied.

    `read_scale` is what its stored numbers are multiplied with; `scale_name` and `grid` are of the scales to be stored.
    """

    shard: Shard
    tensor: Tensor
    dtype: str
    why: str
    read_scale: StoredScale | None = None
    scale_name: str | None = None
    grid: Grid | None = None

    @property
    def is_copied(self) -> bool:
        """Whether its bytes stay what they are."""
        return self.dtype == self.tensor.dtype and self.read_scale is None


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One file to be written: its steps in the order of the output, its header, and the bytes that the file begins
    with."""

    shard: Shard
    steps: tuple[Step, ...]
    header: Header
    first_bytes: bytes


def plan(checkpoint: Checkpoint, options: Options) -> tuple[ShardPlan, ...]:
    """What becomes of every tensor. Raises UnusableOption or UnusableCheckpoint before anything is written."""
    _check(checkpoint, options)
    scales = _stored_scales(checkpoint)
    beside = {scale.tensor.name: name for name, scale in scales.items()}
    steps = {
        tensor.name: _step(shard, tensor, options, scales.get(tensor.name))
        for shard, tensor in checkpoint.tensors()
        if tensor.name not in beside
    }
    copied = {name: steps[of] for name, of in beside.items() if steps[of].read_scale is None}
    for shard, tensor in checkpoint.tensors():
        if tensor.name in copied:
            steps[tensor.name] = Step(shard, tensor, tensor.dtype, f"scale of {beside[tensor.name]}, which stays")
    _check_scale_names(checkpoint, steps, beside)
    return tuple(
        _shard_plan(shard, [one for one in steps.values() if one.shard is shard]) for shard in checkpoint.shards
    )


def _check(checkpoint: Checkpoint, options: Options) -> None:
    if options.include and options.to not in SCALED:
        raise UnusableOption(f"--include is for {', '.join(SCALED)}; {options.to} converts everything that is floating")
    if options.to == "int8" and options.saturate is False:
        raise UnusableOption("--no-saturate cannot be had with int8, which has no infinity; leave it out")
    names = [tensor.name for _, tensor in checkpoint.tensors()]
    for flag, patterns in (("--keep", options.keep), ("--include", options.include)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                example = f"; names look like {names[0]}" if names else ""
                raise UnusableOption(f"{flag} {pattern!r} matches no tensor{example}")
    quantization = (checkpoint.config or {}).get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method not in ("compressed-tensors", "fp8"):
        raise UnusableCheckpoint(
            f"{checkpoint.path} is quantised by {method!r}, whose numbers only its own library can read; "
            "convert the checkpoint that it was made from"
        )


def _stored_scales(checkpoint: Checkpoint) -> dict[str, StoredScale]:
    """The scale of each eight-bit tensor that has one beside it, by the tensor's name."""
    where = {tensor.name: (shard, tensor) for shard, tensor in checkpoint.tensors()}
    found = {}
    for name, (_, tensor) in where.items():
        if name + "_packed" in where or (tensor.dtype in _EIGHT_BITS and name + ZERO_POINT in where):
            raise UnusableCheckpoint(
                f"{name} is packed or has zero points, which cannot be read back; use its own library"
            )
        if tensor.dtype in _EIGHT_BITS:
            for shard, scale in (where[name + suffix] for suffix in SUFFIXES if name + suffix in where):
                if scale.dtype not in SCALE_DTYPES:
                    raise UnusableCheckpoint(
                        f"{scale.name} is {scale.dtype}; a scale is one of {', '.join(SCALE_DTYPES)}"
                    )
                found[name] = StoredScale(shard, scale, stored_grid(tensor, scale, checkpoint.config))
    return found


def _step(shard: Shard, tensor: Tensor, options: Options, scale: StoredScale | None) -> Step:
    """What becomes of a tensor that is not itself a scale."""
    target = DTYPES[options.to]
    reason = _reason_to_stay(tensor, options, is_scaled=scale is not None)
    if reason is not None:
        return Step(shard, tensor, tensor.dtype, reason)
    if options.to not in SCALED:
        return Step(shard, tensor, target, "cast" if scale is None else "scaled back", scale)
    grid = tensor_grid(tensor) if SCALED[options.to] == "tensor" else channel_grid(tensor)
    return Step(shard, tensor, target, f"one scale a {SCALED[options.to]}", scale, tensor.name + SUFFIX, grid)


def _reason_to_stay(tensor: Tensor, options: Options, *, is_scaled: bool) -> str | None:
    included = _matches(tensor.name, options.include)
    if _matches(tensor.name, options.keep):
        return "kept, as asked"
    if tensor.dtype == DTYPES[options.to] and (is_scaled or options.to not in SCALED or tensor.dtype == "I8"):
        return f"already {options.to}"
    if tensor.dtype not in FLOATS and not is_scaled:
        if included:
            raise UnusableOption(
                f"--include names {tensor.name}, which is {tensor.dtype}; only floating numbers convert"
            )
        return "not floating"
    if options.to not in SCALED or included:
        return None
    role = next((role for role, pattern in _SENSITIVE if pattern.search(tensor.name)), None)
    if role is not None:
        return role
    return None if len(tensor.shape) == 2 else f"{len(tensor.shape)} axes, not a matrix"


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_scale_names(checkpoint: Checkpoint, steps: Mapping[str, Step], beside: Mapping[str, str]) -> None:
    """No scale gets the name of a tensor that is there, unless that was this tensor's own scale."""
    for step in steps.values():
        if step.scale_name is None:
            continue
        if step.scale_name in steps or beside.get(step.scale_name, step.tensor.name) != step.tensor.name:
            raise UnusableCheckpoint(
                f"{checkpoint.path} has a tensor {step.scale_name}, as the scale of {step.tensor.name} will be called; "
                f"keep that tensor as it is: --keep '{step.tensor.name}'"
            )


def _shard_plan(shard: Shard, steps: list[Step]) -> ShardPlan:
    by_name = {step.tensor.name: step for step in steps}
    described = [(step.tensor.name, step.dtype, step.tensor.shape) for step in steps]
    described += [
        (step.scale_name, "F32", scale_shape(step.tensor, step.grid)) for step in steps if step.scale_name and step.grid
    ]
    header, first_bytes = write_header(described, shard.header.metadata)
    ordered = tuple(by_name[tensor.name] for tensor in header.tensors if tensor.name in by_name)
    return ShardPlan(shard, ordered, header, first_bytes)
