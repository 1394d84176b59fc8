"""What may go wrong when numbers go from one format to another, why, and what is done about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from app.precision import sources
from app.precision.definition import Format
from app.precision.layouts import CodebookLayout, FixedPointLayout, FloatLayout, IntegerLayout
from app.sources import Source

RiskKind = Literal["range", "underflow", "resolution", "outliers", "no_gradients", "not_native", "other_encoding"]


@dataclass(frozen=True, slots=True)
class Risk:
    """One thing that may go wrong."""

    kind: RiskKind
    because: str
    remedy: str
    source: Source


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: RiskKind
    applies: Callable[[Format, Format], bool]
    because: Callable[[Format, Format], str]
    remedy: str
    source: Source


def risks_of(source: Format, to: Format) -> tuple[Risk, ...]:
    """The risks of going from `source` to `to`, the gravest first; none where every number is kept."""
    return tuple(
        Risk(rule.kind, rule.because(source, to), rule.remedy, rule.source)
        for rule in _RULES
        if rule.applies(source, to)
    )


def _largest(format: Format) -> float:
    return float(format.layout.largest)


def _smallest(format: Format) -> float:
    """The smallest number above 0 of a float; of others 0, since their scale decides."""
    return format.layout.smallest_subnormal if isinstance(format.layout, FloatLayout) else 0.0


def _digits(format: Format) -> int:
    """Bits of precision: of a float its mantissa with the leading one."""
    layout = format.layout
    return layout.mantissa_bits + 1 if isinstance(layout, FloatLayout) else layout.bits - layout.sign_bits


def _unscaled_float(format: Format) -> bool:
    return format.kind == "float"


_RULES = (
    _Rule(
        "range",
        lambda source, to: _unscaled_float(to) and _largest(to) < _largest(source) / 2 and to.storage_bits > 8,
        lambda source, to: f"numbers beyond {_largest(to):g} overflow; {source.name} reaches {_largest(source):.3g}",
        "Look at the largest activations first; keep what exceeds the range in a wider format, or take bf16.",
        sources.MIXED_PRECISION,
    ),
    _Rule(
        "range",
        lambda source, to: _unscaled_float(to) and _largest(to) < _largest(source) / 2 and to.storage_bits <= 8,
        lambda _source, to: f"without a scale, numbers beyond {_largest(to):g} overflow",
        "Scale each tensor, or block, so that its largest magnitude just fits, and saturate.",
        sources.FP8,
    ),
    _Rule(
        "underflow",
        lambda source, to: isinstance(to.layout, FloatLayout) and _smallest(to) > max(_smallest(source), 2.0**-60),
        lambda _source, to: (
            f"gradients below {_smallest(to) / 2:.2g}{' times the scale of their block' if to.scales else ''} become 0"
        ),
        "Scale the loss, or tensors and blocks; keep gradients, their sums and weight updates in 16 or 32 bits.",
        sources.MIXED_PRECISION,
    ),
    _Rule(
        "resolution",
        lambda source, to: _digits(to) < _digits(source),
        lambda source, to: (
            f"{_digits(to)} bits of precision instead of {_digits(source)}: weight updates of less than "
            f"2^-{_digits(to)} of a weight are lost"
        ),
        "Keep FP32 master weights, or round the update stochastically; accumulate matrix products in FP32.",
        sources.MIXED_PRECISION,
    ),
    _Rule(
        "outliers",
        lambda _source, to: to.storage_bits <= 8 and isinstance(to.layout, IntegerLayout | FixedPointLayout),
        lambda _source, _to: "steps are even: one large value makes them wide for all that share its scale",
        "Take scales of channels or small blocks, or clip: calibrate by percentile or mse; keep outlier channels wide.",
        sources.GPTQ,
    ),
    _Rule(
        "outliers",
        lambda _source, to: bool(to.scales) and not isinstance(to.layout, IntegerLayout | FixedPointLayout),
        lambda _source, to: (
            f"one large value of a block pushes its small ones toward 0; a block has {to.scales[0].elements:,} elements"
        ),
        "Keep sensitive layers (the first, the last, norms, routers) wide; rotate or smooth activations.",
        sources.MX_TRAINING,
    ),
    _Rule(
        "no_gradients",
        lambda _source, to: isinstance(to.layout, IntegerLayout | CodebookLayout | FixedPointLayout),
        lambda _source, _to: "weights in it are frozen: steps are too coarse for updates, and rounding has no gradient",
        "Train adapters beside them (QLoRA), or quantize while training a wide copy.",
        sources.QLORA,
    ),
    _Rule(
        "not_native",
        lambda _source, to: not any(units.vendor == "NVIDIA" for units in to.native),
        lambda _source, to: f"no NVIDIA GPU computes in {to.name}: it is made wider for each product",
        "Count on memory saved, not on time; on time too only where memory bandwidth is what limits.",
        sources.CUDA_ARITHMETIC,
    ),
    _Rule(
        "other_encoding",
        lambda source, to: "fnuz" in (source.name + to.name),
        lambda _source, _to: "the same bits mean half as much in FNUZ as in OCP's encoding, and the code of -0 is NaN",
        "Convert values, never bytes; double the scales where codes are kept.",
        sources.FNUZ,
    ),
)
