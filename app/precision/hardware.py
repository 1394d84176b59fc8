"""Which GPU generations have units for which formats, and since when.

Matching goes by compute capability: `since_compute_capability` up to, but not including, `until_compute_capability`.
"""

from dataclasses import dataclass
from typing import Literal

from app.precision.sources import AMD_MATRIX_CORES, CDNA3, CDNA4, CUDA_ARITHMETIC, PTX_MMA, TF32
from app.sources import Source


@dataclass(frozen=True, slots=True)
class NativeUnits:
    """Units of one or more GPU generations that take a format as it is. `since` is the year of the first such GPU."""

    vendor: Literal["NVIDIA", "AMD"]
    architectures: str
    since: int
    units: str
    source: Source
    since_compute_capability: str | None = None
    """First CUDA compute capability that has them; null for other vendors' GPUs."""
    until_compute_capability: str | None = None
    """First one that no longer has them; null where all later ones do."""

    def cover(self, compute_capability: str) -> bool:
        """Whether a GPU of NVIDIA's with this compute capability has these units."""
        if self.since_compute_capability is None:
            return False
        version, first = _version(compute_capability), _version(self.since_compute_capability)
        last = self.until_compute_capability
        return first <= version and (last is None or version < _version(last))


def _version(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in compute_capability.split("."))


def _nvidia(
    since_compute_capability: str,
    architectures: str,
    since: int,
    units: str,
    source: Source,
    *,
    until_compute_capability: str | None = None,
) -> NativeUnits:
    return NativeUnits(
        "NVIDIA", architectures, since, units, source, since_compute_capability, until_compute_capability
    )


_CDNA_UNITS = NativeUnits("AMD", "CDNA (MI100) and later", 2020, "matrix cores", AMD_MATRIX_CORES)

FP64_UNITS = (
    _nvidia("6.0", "Pascal GP100", 2016, "half the rate of FP32", CUDA_ARITHMETIC, until_compute_capability="6.1"),
    _nvidia("7.0", "Volta", 2017, "half the rate of FP32", CUDA_ARITHMETIC, until_compute_capability="7.5"),
    _nvidia("8.0", "Ampere GA100", 2020, "tensor cores", TF32, until_compute_capability="8.6"),
    _nvidia("9.0", "Hopper and Blackwell", 2022, "tensor cores", PTX_MMA, until_compute_capability="10.3"),
    NativeUnits("AMD", "CDNA 2 (MI200) and later", 2021, "matrix cores", AMD_MATRIX_CORES),
)
FP32_UNITS = (_nvidia("1.0", "all", 2006, "full rate, without tensor cores", CUDA_ARITHMETIC), _CDNA_UNITS)
TF32_UNITS = (
    _nvidia("8.0", "Ampere and later", 2020, "tensor cores", TF32),
    NativeUnits("AMD", "CDNA 3 (MI300)", 2023, "matrix cores, which call it XF32", CDNA3),
)
FP16_UNITS = (
    _nvidia(
        "6.0",
        "Pascal GP100",
        2016,
        "twice the rate of FP32, without tensor cores",
        CUDA_ARITHMETIC,
        until_compute_capability="6.1",
    ),
    _nvidia("7.0", "Volta and later", 2017, "tensor cores", PTX_MMA),
    _CDNA_UNITS,
)
BF16_UNITS = (_nvidia("8.0", "Ampere and later", 2020, "tensor cores", TF32), _CDNA_UNITS)
UNSIGNED_8_UNITS = (
    _nvidia(
        "6.1",
        "Pascal GP10x and Volta",
        2016,
        "four products at once (DP4A), without tensor cores",
        CUDA_ARITHMETIC,
        until_compute_capability="7.2",
    ),
    _nvidia("7.2", "Turing and later", 2018, "tensor cores", PTX_MMA),
)
SIGNED_8_UNITS = (*UNSIGNED_8_UNITS, _CDNA_UNITS)
INTEGER_4_UNITS = (
    _nvidia("7.5", "Turing, Ampere and Ada", 2018, "tensor cores", PTX_MMA, until_compute_capability="9.0"),
)
FP8_UNITS = (
    _nvidia("8.9", "Ada, Hopper, Blackwell and later", 2022, "tensor cores", PTX_MMA),
    NativeUnits("AMD", "CDNA 4 (MI350)", 2025, "matrix cores", CDNA4),
)
FNUZ_UNITS = (NativeUnits("AMD", "CDNA 3 (MI300)", 2023, "matrix cores", CDNA3),)
NARROW_FLOAT_UNITS = (
    _nvidia("10.0", "Blackwell and later", 2024, "tensor cores", PTX_MMA),
    NativeUnits("AMD", "CDNA 4 (MI350)", 2025, "matrix cores", CDNA4),
)
MX_UNITS = (
    _nvidia("10.0", "Blackwell and later", 2024, "tensor cores that apply the E8M0 scales", PTX_MMA),
    NativeUnits("AMD", "CDNA 4 (MI350)", 2025, "matrix cores that apply the E8M0 scales", CDNA4),
)
NVFP4_UNITS = (_nvidia("10.0", "Blackwell and later", 2024, "tensor cores that apply the E4M3 scales", PTX_MMA),)
FP8_TILE_UNITS = (
    _nvidia(
        "8.9",
        "Ada, Hopper, Blackwell and later",
        2022,
        "FP8 tensor cores; the kernel applies the FP32 scales while it accumulates",
        PTX_MMA,
    ),
)
