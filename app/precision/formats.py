"""Every number format: its layout, its limits, what a parameter in it costs, what computes in it, what it is for."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.errors import Fault, NotFound, UnknownName
from app.precision import hardware, sources
from app.precision.definition import Format, Kind, Scale
from app.precision.hardware import NativeUnits
from app.precision.layouts import (
    NF4_VALUES,
    CodebookLayout,
    FixedPointLayout,
    FloatLayout,
    IntegerLayout,
    Layout,
)
from app.sources import Source


def _row(
    name: str,
    title: str,
    layout: Layout,
    used_for: str,
    native: tuple[NativeUnits, ...],
    *cited: Source,
    storage_bits: int | None = None,
) -> Format:
    kind: Kind = "float" if isinstance(layout, FloatLayout) else "integer"
    return Format(name, title, kind, layout, used_for, native, cited, name, (), storage_bits or layout.bits)


def _blocks(
    name: str,
    title: str,
    element: str,
    layout: Layout,
    scales: tuple[Scale, ...],
    used_for: str,
    native: tuple[NativeUnits, ...],
    *cited: Source,
) -> Format:
    return Format(name, title, "block", layout, used_for, native, cited, element, scales, layout.bits)


_E4M3 = FloatLayout(4, 3, 7, "nan-only")
_E5M2 = FloatLayout(5, 2, 15, "ieee")
_E2M3 = FloatLayout(2, 3, 1, "finite")
_E3M2 = FloatLayout(3, 2, 3, "finite")
_E2M1 = FloatLayout(2, 1, 1, "finite")
_NF4 = CodebookLayout(NF4_VALUES)
_MX = (Scale("e8m0", 1, 32),)
_NF4_BLOCKS = 64
_NF4_NESTED_BLOCKS = 256

_FLOATS = (
    _row(
        "fp64",
        "IEEE double precision",
        FloatLayout(11, 52, 1023, "ieee"),
        "Reference results and scientific code; not for training networks.",
        hardware.FP64_UNITS,
        sources.IEEE_754,
    ),
    _row(
        "fp32",
        "IEEE single precision",
        FloatLayout(8, 23, 127, "ieee"),
        "Master weights, optimizer states, norms, softmax and losses of mixed-precision training.",
        hardware.FP32_UNITS,
        sources.IEEE_754,
        sources.MIXED_PRECISION,
    ),
    _row(
        "tf32",
        "NVIDIA TensorFloat-32",
        FloatLayout(8, 10, 127, "ieee"),
        "Matrix products of FP32 tensors, whose operands tensor cores round to it; kept in memory as FP32.",
        hardware.TF32_UNITS,
        sources.TF32,
        storage_bits=32,
    ),
    _row(
        "fp16",
        "IEEE half precision",
        FloatLayout(5, 10, 15, "ieee"),
        "Weights, activations and gradients of mixed-precision training; small gradients need loss scaling.",
        hardware.FP16_UNITS,
        sources.IEEE_754,
        sources.MIXED_PRECISION,
    ),
    _row(
        "bf16",
        "bfloat16",
        FloatLayout(8, 7, 127, "ieee"),
        "The usual format of weights, activations and gradients in training: the range of FP32, no loss scaling.",
        hardware.BF16_UNITS,
        sources.BFLOAT16,
    ),
    _row(
        "fp8_e4m3",
        "OCP FP8 E4M3, finite and NaN only",
        _E4M3,
        "Weights and activations of FP8 matrix products, scaled per tensor or block; not accumulated in.",
        hardware.FP8_UNITS,
        sources.FP8,
        sources.OCP_FP8,
    ),
    _row(
        "fp8_e5m2",
        "OCP FP8 E5M2",
        _E5M2,
        "Gradients of FP8 matrix products, which need more range than E4M3 has; scaled per tensor.",
        hardware.FP8_UNITS,
        sources.FP8,
        sources.OCP_FP8,
    ),
    _row(
        "fp8_e4m3fnuz",
        "FP8 E4M3 with one unsigned zero",
        FloatLayout(4, 3, 8, "unsigned-zero"),
        "What E4M3 is on MI300: the same bits mean half of the OCP format's value.",
        hardware.FNUZ_UNITS,
        sources.FNUZ,
    ),
    _row(
        "fp8_e5m2fnuz",
        "FP8 E5M2 with one unsigned zero",
        FloatLayout(5, 2, 16, "unsigned-zero"),
        "What E5M2 is on MI300: the same bits mean half of the OCP format's value.",
        hardware.FNUZ_UNITS,
        sources.FNUZ,
    ),
    _row(
        "fp6_e2m3",
        "OCP FP6 E2M3",
        _E2M3,
        "The element of MXFP6 where mantissa matters more than range; not trained in without block scales.",
        hardware.NARROW_FLOAT_UNITS,
        sources.OCP_MX,
    ),
    _row(
        "fp6_e3m2",
        "OCP FP6 E3M2",
        _E3M2,
        "The element of MXFP6 where range matters more than mantissa; not trained in without block scales.",
        hardware.NARROW_FLOAT_UNITS,
        sources.OCP_MX,
    ),
    _row(
        "fp4_e2m1",
        "OCP FP4 E2M1",
        _E2M1,
        "The element of MXFP4 and NVFP4; its 15 values are of use under block scales only.",
        hardware.NARROW_FLOAT_UNITS,
        sources.OCP_MX,
    ),
)

_INTEGERS = (
    _row(
        "int8",
        "8-bit integer",
        IntegerLayout(8, signed=True),
        "Frozen weights and inference; states of 8-bit optimizers (by table, not linear). Not for gradients.",
        hardware.SIGNED_8_UNITS,
        sources.INTEGERS,
        sources.EIGHT_BIT_OPTIMIZERS,
    ),
    _row(
        "uint8",
        "unsigned 8-bit integer",
        IntegerLayout(8, signed=False),
        "Activations of inference that are skewed to one side, with a zero point.",
        hardware.UNSIGNED_8_UNITS,
        sources.INTEGERS,
    ),
    _row(
        "int4",
        "4-bit integer",
        IntegerLayout(4, signed=True),
        "Frozen weights in groups, beside which adapters are trained.",
        hardware.INTEGER_4_UNITS,
        sources.INTEGERS,
        sources.GPTQ,
    ),
    _row(
        "uint4",
        "unsigned 4-bit integer",
        IntegerLayout(4, signed=False),
        "Frozen weights in groups with a zero point, as GPTQ and AWQ store them.",
        hardware.INTEGER_4_UNITS,
        sources.INTEGERS,
        sources.GPTQ,
    ),
)

_BLOCK_FORMATS = (
    _blocks(
        "nf4",
        "4-bit NormalFloat in blocks of 64",
        "nf4",
        _NF4,
        (Scale("fp32", 1, _NF4_BLOCKS, flat=True),),
        "Frozen weights of QLoRA; made 16 bit again for each product.",
        (),
        sources.QLORA,
        sources.BITSANDBYTES_NF4,
    ),
    _blocks(
        "nf4-double",
        "4-bit NormalFloat with quantized scales",
        "nf4",
        _NF4,
        (
            Scale("dynamic8", 1, _NF4_BLOCKS, flat=True),
            Scale("fp32", 1, _NF4_BLOCKS * _NF4_NESTED_BLOCKS, flat=True),
            Scale("fp32", 1, None),
        ),
        "Frozen weights of QLoRA, 0.37 bits a parameter less; the tensor's one FP32 number is the mean of its scales.",
        (),
        sources.QLORA,
        sources.BITSANDBYTES_NF4,
    ),
    _blocks(
        "mxfp8",
        "OCP MXFP8, E4M3 elements",
        "fp8_e4m3",
        _E4M3,
        _MX,
        "Weights, activations and gradients of FP8 training on Blackwell.",
        hardware.MX_UNITS,
        sources.OCP_MX,
        sources.MX_TRAINING,
    ),
    _blocks(
        "mxfp8_e5m2",
        "OCP MXFP8, E5M2 elements",
        "fp8_e5m2",
        _E5M2,
        _MX,
        "Gradients whose range within a block is too wide for E4M3.",
        hardware.MX_UNITS,
        sources.OCP_MX,
        sources.MX_TRAINING,
    ),
    _blocks(
        "mxfp6",
        "OCP MXFP6, E2M3 elements",
        "fp6_e2m3",
        _E2M3,
        _MX,
        "Weights and activations of inference; training with it has been shown, not established.",
        hardware.MX_UNITS,
        sources.OCP_MX,
        sources.MX_TRAINING,
    ),
    _blocks(
        "mxfp6_e3m2",
        "OCP MXFP6, E3M2 elements",
        "fp6_e3m2",
        _E3M2,
        _MX,
        "As MXFP6, for blocks with a wider range.",
        hardware.MX_UNITS,
        sources.OCP_MX,
        sources.MX_TRAINING,
    ),
    _blocks(
        "mxfp4",
        "OCP MXFP4",
        "fp4_e2m1",
        _E2M1,
        _MX,
        "Weights of inference, such as the experts of gpt-oss; in training with stochastic rounding, as research.",
        hardware.MX_UNITS,
        sources.OCP_MX,
        sources.MX_TRAINING,
    ),
    _blocks(
        "mxint8",
        "OCP MXINT8",
        "int8, as multiples of 1/64",
        FixedPointLayout(8, 6),
        _MX,
        "Inference without calibration; no GPU multiplies it as it is.",
        (),
        sources.OCP_MX,
        sources.MX_TRAINING,
    ),
    _blocks(
        "nvfp4",
        "NVIDIA NVFP4",
        "fp4_e2m1",
        _E2M1,
        (Scale("fp8_e4m3", 1, 16), Scale("fp32", 1, None)),
        "Matrix products of FP4 training on Blackwell, with stochastic rounding of gradients; inference.",
        hardware.NVFP4_UNITS,
        sources.NVFP4,
    ),
    _blocks(
        "fp8_e4m3_128x128",
        "FP8 E4M3 with an FP32 scale for 128 × 128 elements",
        "fp8_e4m3",
        _E4M3,
        (Scale("fp32", 128, 128),),
        "Weights of DeepSeek-V3's training and checkpoint; its activations have a scale for 1 × 128.",
        hardware.FP8_TILE_UNITS,
        sources.DEEPSEEK,
    ),
)

NUMBER_FORMATS: Mapping[str, Format] = MappingProxyType(
    {format.name: format for format in (*_FLOATS, *_INTEGERS, *_BLOCK_FORMATS)}
)
"""Every format that can be asked for, by name."""


def format_named(name: str, *, pointer: str) -> Format:
    """The format with this name. Raises UnknownName with the nearest names, pointing at `pointer`."""
    if name not in NUMBER_FORMATS:
        raise _unknown(name, pointer)
    return NUMBER_FORMATS[name]


def format_in_query(name: str) -> Format:
    """The format that the query parameter `to` names. Raises InvalidInput with the nearest names."""
    if name not in NUMBER_FORMATS:
        detail = _unknown(name, "").detail
        raise UnknownName(f"to: {detail}", errors=(Fault(detail=detail, parameter="to"),))
    return NUMBER_FORMATS[name]


def format_at_path(name: str) -> Format:
    """The format of a URL path. Raises NotFound with the nearest names."""
    if name not in NUMBER_FORMATS:
        raise NotFound(_unknown(name, "").detail)
    return NUMBER_FORMATS[name]


def _unknown(name: str, pointer: str) -> UnknownName:
    return UnknownName.among(
        "format", name[:100], list(NUMBER_FORMATS), pointer=pointer, see="GET /v1/precision/formats"
    )


@dataclass(frozen=True, slots=True)
class ElementType:
    """What an element of a training step's tensor is stored as."""

    name: str
    bits: int

    @property
    def bytes(self) -> int:
        """Whole bytes of one element."""
        return self.bits // 8


FORMATS: Mapping[str, ElementType] = MappingProxyType(
    {
        **{name: ElementType(name, NUMBER_FORMATS[name].storage_bits) for name in ("fp32", "bf16", "fp16", "int8")},
        "fp8": ElementType("fp8", NUMBER_FORMATS["fp8_e4m3"].storage_bits),
        "bool": ElementType("bool", 8),
        "int64": ElementType("int64", 64),
    }
)
"""Element types of a training step's tensors, under the planner's names: `fp8` is either 8-bit float, and masks and
indices, which are not numbers of a format, are `bool` and `int64`.
"""
