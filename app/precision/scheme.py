"""How a tensor is quantized: what shares a scale, how the scale is found, and how elements are rounded."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SchemeKind = Literal["none", "symmetric", "affine"]
Granularity = Literal["tensor", "channel", "block"]
Calibration = Literal["max", "percentile", "mse"]
RoundingMode = Literal["nearest", "stochastic"]

_NEEDS = {
    "granularity": ("kind", ("symmetric", "affine")),
    "calibration": ("kind", ("symmetric", "affine")),
    "scale_floats": ("kind", ("symmetric",)),
    "block_size": ("granularity", ("block",)),
    "channel_axis": ("granularity", ("channel",)),
    "percentile": ("calibration", ("percentile",)),
    "seed": ("rounding", ("stochastic",)),
}
"""Fields that do nothing unless another one has one of these values."""


class Scheme(BaseModel):
    """A quantization scheme. It is for integers, and for floats of 8 bits or less with `scale_floats`; block formats
    bring their own scales, and take the way of rounding from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)

    kind: SchemeKind = "none"
    """`none`: the scale is 1. `symmetric`: zero is zero, and as far to each side. `affine`: with a zero point, for
    values that lie to one side.
    """
    granularity: Granularity = "tensor"
    """What shares a scale: all of the tensor; a channel; or a run of `block_size` elements along the last axis, the
    last of which may be shorter (groups, as GPTQ calls them).
    """
    block_size: Annotated[int, Field(ge=2, le=65_536)] | None = None
    """Elements of a block. Default 128."""
    channel_axis: Annotated[int, Field(ge=0, le=15)] = 0
    """Which axis counts the channels: 0 is the output features of a linear layer's weight. In a file, tensors without
    this axis, such as biases without axis 1, have one scale.
    """
    calibration: Calibration = "max"
    """How far a scale reaches: to the largest magnitude; to a `percentile` of them; or as far as makes the mean squared
    error least (`mse`), among 48 ranges from all of it down to a tenth.
    """
    percentile: Annotated[float, Field(ge=50, le=100)] | None = None
    """Share of the magnitudes that the range covers, in percent: the smallest of them that at least so many do not
    exceed. Default 99.9.
    """
    rounding: RoundingMode = "nearest"
    """`nearest`, ties to even; or up and down at random, so that the mean is right (`stochastic`)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of stochastic rounding: the same seed and tensor give the same codes."""
    saturate: bool = False
    """Floats that overflow become the largest number, as training libraries do, instead of infinity or NaN."""
    scale_floats: bool = False
    """`symmetric` scales floats of 8 bits or less too, as FP8 training does."""

    @model_validator(mode="after")
    def _nothing_is_idle(self) -> Self:
        for field, (other, values) in _NEEDS.items():
            is_said = getattr(self, field) != type(self).model_fields[field].default
            if is_said and getattr(self, other) not in values:
                raise ValueError(f"{field} needs {other} {' or '.join(values)}; leave it out otherwise")
        return self


class ShapedScheme(Scheme):
    """A scheme for values that are sent as one list."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=1, max_length=8)] | None = None
    """Shape of the tensor that the values are, in row-major order. Default: one row."""
