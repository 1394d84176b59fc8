"""What `/v1/precision/formats` says of a format: its definition, and the limits that follow from it."""

from dataclasses import dataclass

from app.precision.definition import Format, Kind, ScaleFormat
from app.precision.hardware import NativeUnits
from app.precision.layouts import CodebookLayout, FloatLayout, IntegerLayout
from app.sources import Source


@dataclass(frozen=True, slots=True)
class ScaleView:
    """A scale that elements share. `elements` is null where a tensor has one."""

    format: ScaleFormat
    elements: int | None
    shape: str


@dataclass(frozen=True, slots=True)
class FormatView:
    """A number format. Limits are those of an element before its scale; null is what the format does not have."""

    name: str
    title: str
    kind: Kind
    bits: int
    """Bits of one element."""
    storage_bits: int
    """Bits that one element takes in memory; more than `bits` for tf32 alone."""
    sign_bits: int
    exponent_bits: int
    mantissa_bits: int
    """Bits beside sign and exponent; of an integer or an index, all but its sign."""
    bias: int | None
    largest: float
    smallest: float
    """The most negative number."""
    smallest_normal: float | None
    smallest_subnormal: float | None
    epsilon: float | None
    """From 1 to the next number."""
    special_values: tuple[str, ...]
    overflow: str
    """What becomes of a number beyond `largest`, unless conversion saturates."""
    values: tuple[float, ...] | None
    """The table that an index means."""
    element: str
    scales: tuple[ScaleView, ...]
    bytes_per_parameter: float
    """Of a large tensor, scales included."""
    bytes_per_tensor: int
    """What each tensor has once."""
    native: tuple[NativeUnits, ...]
    """GPU generations that compute in it; none where it is made wider first."""
    used_for: str
    sources: tuple[Source, ...]


def view_of(format: Format) -> FormatView:
    """The format with its limits worked out."""
    layout = format.layout
    exponent_bits = layout.exponent_bits if isinstance(layout, FloatLayout) else 0
    return FormatView(
        name=format.name,
        title=format.title,
        kind=format.kind,
        bits=layout.bits,
        storage_bits=format.storage_bits,
        sign_bits=layout.sign_bits,
        exponent_bits=exponent_bits,
        mantissa_bits=layout.bits - layout.sign_bits - exponent_bits,
        bias=layout.bias if isinstance(layout, FloatLayout) else None,
        largest=float(layout.largest),
        smallest=float(layout.smallest) if isinstance(layout, IntegerLayout) else -float(layout.largest),
        smallest_normal=layout.smallest_normal if isinstance(layout, FloatLayout) else None,
        smallest_subnormal=layout.smallest_subnormal if isinstance(layout, FloatLayout) else None,
        epsilon=layout.epsilon if isinstance(layout, FloatLayout) else None,
        special_values=_special_values(layout) if isinstance(layout, FloatLayout) else (),
        overflow=_overflow(layout) if isinstance(layout, FloatLayout) else "largest",
        values=layout.values if isinstance(layout, CodebookLayout) else None,
        element=format.element,
        scales=tuple(
            ScaleView(scale.format, scale.elements, _shape(scale.rows, scale.columns, flat=scale.flat))
            for scale in format.scales
        ),
        bytes_per_parameter=float(format.bytes_per_parameter),
        bytes_per_tensor=format.bytes_per_tensor,
        native=format.native,
        used_for=format.used_for,
        sources=format.sources,
    )


def _special_values(layout: FloatLayout) -> tuple[str, ...]:
    has = {"-0": layout.has_negative_zero, "Infinity": layout.has_infinity, "-Infinity": layout.has_infinity}
    return tuple(name for name, there in {**has, "NaN": layout.has_nan}.items() if there)


def _overflow(layout: FloatLayout) -> str:
    return "infinity" if layout.has_infinity else "nan" if layout.has_nan else "largest"


def _shape(rows: int, columns: int | None, *, flat: bool) -> str:
    if columns is None:
        return "tensor"
    return f"{columns} in a row, across rows" if flat else f"{rows} × {columns}" if rows > 1 else f"{columns} in a row"
