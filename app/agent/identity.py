"""What makes a report the one it is: `(node, boot_id, sequence)`, never the same for two reports."""

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class Sequence:
    """Numbers for the reports of one boot: microseconds since the node started, and always more than the number before.

    The clock since boot runs through an agent's restarts and is never set back within a boot, so no number comes twice,
    even if all that the agent stored is lost or two agents overlap for a moment. A counter on disk promises neither.
    """

    _last: int = field(default=-1)

    def next(self) -> int:
        """The number for the next report; below 2⁵³ for 285 years."""
        self._last = max(self._last + 1, time.monotonic_ns() // 1_000)
        return self._last


def boot_id() -> str:
    """The kernel's own id of this boot; one made up for this process where the kernel's cannot be read."""
    try:
        return _BOOT_ID_FILE.read_text(encoding="ascii").strip() or str(uuid.uuid4())
    except (OSError, UnicodeDecodeError):
        return str(uuid.uuid4())
