"""Binary and decimal units, and the text people read."""

import re

KB = 10**3
MB = 10**6
GB = 10**9
TB = 10**12
KIB = 2**10
MIB = 2**20
GIB = 2**30
TIB = 2**40

_UNITS = {"": 1, "B": 1, "KB": KB, "MB": MB, "GB": GB, "TB": TB, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": TIB}
_AMOUNT = re.compile(r"(?P<count>\d+)\s*(?P<unit>[A-Za-z]*)")


def human_bytes(amount_bytes: int) -> str:
    """Text for people, in binary units with two decimals: `human_bytes(85_520_809_984)` is `"79.65 GiB"`."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(amount_bytes) >= unit:
            return f"{amount_bytes / unit:,.2f} {name}"
    return f"{amount_bytes} B"


def parse_bytes(text: str) -> int:
    """A size as people write it in a setting: `"8 MiB"`, `"4096"`. Raises ValueError naming the known units."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match["unit"].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write a whole number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB")
    return int(match["count"]) * _UNITS[match["unit"].upper()]
