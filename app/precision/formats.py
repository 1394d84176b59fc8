"""One row per number format that a tensor of a training run can have."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """A number format. `bits` counts one element, without any scale shared by a block."""

    name: str
    bits: int

    @property
    def bytes(self) -> int:
        """Whole bytes of one element."""
        return self.bits // 8


FORMATS = MappingProxyType(
    {
        name: NumberFormat(name, bits)
        for name, bits in (
            ("fp32", 32),
            ("bf16", 16),
            ("fp16", 16),
            ("fp8", 8),
            ("int8", 8),
            ("bool", 8),
            ("int64", 64),
        )
    }
)
