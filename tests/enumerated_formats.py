"""Every number of a float format, counted up code by code with fractions, and the nearest one to any fraction.

Written from the definitions alone, apart from the code under test: nothing of `app` is read here.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

PARAMETERS = {
    # exponent bits, mantissa bits, bias, which codes of the largest exponent (or zero) are no numbers
    "fp32": (8, 23, 127, "ieee"),
    "tf32": (8, 10, 127, "ieee"),
    "fp16": (5, 10, 15, "ieee"),
    "bf16": (8, 7, 127, "ieee"),
    "fp8_e4m3": (4, 3, 7, "all ones"),
    "fp8_e5m2": (5, 2, 15, "ieee"),
    "fp8_e4m3fnuz": (4, 3, 8, "negative zero"),
    "fp8_e5m2fnuz": (5, 2, 16, "negative zero"),
    "fp6_e2m3": (2, 3, 1, "none"),
    "fp6_e3m2": (3, 2, 3, "none"),
    "fp4_e2m1": (2, 1, 1, "none"),
}


@dataclass(frozen=True)
class Enumerated:
    """The non-negative numbers of a format in order. Their index is their code, since codes sort as numbers do."""

    name: str
    bits: int
    numbers: list[Fraction]
    """One more than the largest at the end: the number that would be next, which means overflow."""
    kind: str

    def nearest(self, exact: Fraction) -> int | None:
        """The code of the magnitude nearest to |exact|, the even code of two; None for overflow."""
        magnitude = abs(exact)
        low, high = 0, len(self.numbers) - 1
        if magnitude >= self.numbers[high]:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.numbers[middle] <= magnitude else (low, middle)
        below, above = magnitude - self.numbers[low], self.numbers[high] - magnitude
        code = low if below < above or (below == above and low % 2 == 0) else high
        return None if code == len(self.numbers) - 1 else code

    def nearest_of_many(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The same for many float64 at once; overflow is the code one past the largest number's."""
        numbers = np.array([float(number) for number in self.numbers])
        magnitudes = np.abs(values)
        low = np.clip(np.searchsorted(numbers, magnitudes, side="right") - 1, 0, len(numbers) - 2)
        below, above = magnitudes - numbers[low], numbers[low + 1] - magnitudes
        up = (above < below) | ((above == below) & (low % 2 == 1)) | (magnitudes >= numbers[-1])
        found: NDArray[np.int64] = low + up
        return found


def enumerated(name: str) -> Enumerated:
    exponent_bits, mantissa_bits, bias, kind = PARAMETERS[name]
    count = 2 ** (exponent_bits + mantissa_bits)
    if kind == "ieee":
        count -= 2**mantissa_bits
    elif kind == "all ones":
        count -= 1
    numbers = []
    for code in range(count + 1):
        exponent, mantissa = divmod(code, 2**mantissa_bits)
        if exponent == 0:
            numbers.append(Fraction(mantissa, 2**mantissa_bits) * Fraction(2) ** (1 - bias))
        else:
            numbers.append((1 + Fraction(mantissa, 2**mantissa_bits)) * Fraction(2) ** (exponent - bias))
    return Enumerated(name, 1 + exponent_bits + mantissa_bits, numbers, kind)
