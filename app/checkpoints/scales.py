"""Scales beside eight-bit tensors: `value = stored * scale`.

Written as compressed-tensors names and shapes them: `<tensor>_scale` in FP32, one number for a tensor (shape [1]) or
one for each index of the first axis (shape [channels, 1, …]). Read also as DeepSeek names them (`<tensor>_scale_inv`,
which multiplies in spite of its name), with one for each block of a matrix. Sources:
https://github.com/neuralmagic/compressed-tensors, `compressors/`, and
https://huggingface.co/deepseek-ai/DeepSeek-V3, `inference/fp8_cast_bf16.py` and `inference/kernel.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from app.checkpoints.faults import UnusableCheckpoint
from app.checkpoints.header import Tensor
from app.precision.casting import Array

SUFFIX = "_scale"
SUFFIXES = (SUFFIX, "_scale_inv")
ZERO_POINT = "_zero_point"
BLOCK = (128, 128)
"""Rows and columns of a block where no config.json says otherwise: DeepSeek's."""

SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")


@dataclass(frozen=True, slots=True)
class Grid:
    """Which scale each element of a tensor has: `elements_per_row` elements share a row of scales; within it, `columns`
    elements lie in blocks of `block_columns`, and `block_rows` rows share their scales."""

    shape: tuple[int, int]
    elements_per_row: int
    block_rows: int = 1
    block_columns: int | None = None

    def over(self, scales: Array, start: int, stop: int) -> Array:
        """The scales of the elements from `start` up to `stop`: one number where they share it, else one for each."""
        if scales.size == 1:
            return scales.reshape(())
        first, last = start // self.elements_per_row, (stop - 1) // self.elements_per_row
        rows = scales.reshape(self.shape)[np.arange(first, last + 1) // self.block_rows]
        if self.block_columns is not None:
            spread = np.repeat(rows, self.block_columns, axis=1)[:, : self.elements_per_row].ravel()
            return spread[start - first * self.elements_per_row : stop - first * self.elements_per_row]
        if first == last:
            return rows.reshape(())
        return np.repeat(rows.ravel(), self.lengths(start, stop))

    def starts(self, start: int, stop: int) -> Array:
        """Where rows begin among the elements from `start` up to `stop`, the first at 0 though it may be a part."""
        first, last = start // self.elements_per_row, (stop - 1) // self.elements_per_row
        return np.maximum(np.arange(first, last + 1) * self.elements_per_row - start, 0)

    def lengths(self, start: int, stop: int) -> Array:
        """How many elements of each row lie between `start` and `stop`."""
        return np.diff(self.starts(start, stop), append=stop - start)


def tensor_grid(tensor: Tensor) -> Grid:
    """One scale for all of it."""
    return Grid((1, 1), max(tensor.elements, 1))


def channel_grid(tensor: Tensor) -> Grid:
    """One scale for each index of the first axis; a tensor of fewer than two axes has one scale."""
    if len(tensor.shape) < 2:
        return tensor_grid(tensor)
    return Grid((tensor.shape[0], 1), max(math.prod(tensor.shape[1:]), 1))


def scale_shape(tensor: Tensor, grid: Grid) -> tuple[int, ...]:
    """The shape that the scales of this grid are stored in."""
    return (1,) if len(tensor.shape) < 2 or grid.shape == (1, 1) else (grid.shape[0], *(1 for _ in tensor.shape[1:]))


def stored_grid(tensor: Tensor, scale: Tensor, config: Mapping[str, object] | None) -> Grid:
    """The grid of a scale that lies beside a tensor. Raises UnusableCheckpoint for a shape that fits no scheme."""
    if scale.elements == 1:
        return tensor_grid(tensor)
    rows = tensor.shape[0] if tensor.shape else 1
    if scale.shape[:1] == (rows,) and scale.elements == rows:
        return channel_grid(tensor)
    block = _block_size(config)
    if len(tensor.shape) == 2 and scale.shape == tuple(
        -(-size // of) for size, of in zip(tensor.shape, block, strict=True)
    ):
        return Grid((scale.shape[0], scale.shape[1]), tensor.shape[1], *block)
    raise UnusableCheckpoint(
        f"{scale.name} of shape {list(scale.shape)} is no scale for {tensor.name} of shape {list(tensor.shape)}: "
        f"known are one number, one for each row, and one for each block of {block[0]} × {block[1]}"
    )


def _block_size(config: Mapping[str, object] | None) -> tuple[int, int]:
    quantization = (config or {}).get("quantization_config")
    given = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if given is None:
        return BLOCK
    if not isinstance(given, list) or len(given) != 2 or not all(type(one) is int and one > 0 for one in given):
        raise UnusableCheckpoint(f"config.json has the weight_block_size {given!r}; it must be [rows, columns]")
    return given[0], given[1]
