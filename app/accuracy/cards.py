"""The GPU a source names, as a card of the catalogue."""

import re

from app import catalog
from app.planning.specs import Gpu
from app.units import GIB

_BY_WORDS: tuple[tuple[str, tuple[tuple[float, str], ...]], ...] = (
    (r"\bgb300\b", ((0, "gb300"),)),
    (r"\bgb200\b", ((0, "gb200"),)),
    (r"\bb300\b", ((0, "b300"),)),
    (r"\bb200\b", ((0, "b200"),)),
    (r"\bh200\b", ((0, "h200-sxm-141gb"),)),
    (r"\bh100 nvl\b", ((0, "h100-nvl-94gb"),)),
    (r"\bh100\b", ((90, "h100-sxm-96gb"), (0, "h100-sxm-80gb"))),
    (r"\bh800\b", ((0, "h800-sxm-80gb"),)),
    (r"\bh20\b", ((120, "h20-141gb"), (0, "h20-96gb"))),
    (r"\ba800\b", ((60, "a800-sxm-80gb"), (30, "a800-sxm-40gb"), (0, "a800-sxm-80gb"))),
    (r"\ba100\b", ((60, "a100-sxm-80gb"), (30, "a100-sxm-40gb"), (0, "a100-sxm-80gb"))),
    (r"\bv100\b", ((24, "v100-sxm2-32gb"), (10, "v100-sxm2-16gb"), (0, "v100-sxm2-32gb"))),
    (r"\bl40s\b", ((0, "l40s"),)),
    (r"\bl4\b", ((0, "l4"),)),
    (r"\bt4\b", ((0, "t4"),)),
    (r"\ba10g\b", ((0, "a10g"),)),
    (r"\ba10\b", ((0, "a10"),)),
    (r"\ba40\b", ((0, "a40"),)),
    (r"\ba6000\b", ((0, "rtx-a6000"),)),
    (r"\btitan rtx\b", ((0, "titan-rtx"),)),
)

_LARGEST_GIB = 10_000.0
"""Of cards of one name, the largest is meant where the source says no memory."""


def gpu_of(model: str, memory_gib: float | None) -> Gpu | None:
    """The card, by the words of its name and by its memory in GiB where a card exists with several; None where the
    source names none or the catalogue has none.
    """
    words = re.sub(r"[-_/]", " ", model.lower())
    for pattern, sizes in _BY_WORDS:
        if re.search(pattern, words):
            return catalog.load().gpus[next(key for least, key in sizes if (memory_gib or 0) >= least)]
    geforce = re.search(r"\b(\d{4})\s*(ti)?\s*(super)?\b", words)
    if geforce is not None and "rtx" in words:
        key = "-".join(part for part in ("rtx", *geforce.groups()) if part)
        of_any_size = rf"{re.escape(key)}(-(\d+)gb)?"
        matches = [card for name, card in catalog.load().gpus.items() if re.fullmatch(of_any_size, name)]
        return min(matches, key=lambda card: abs(card.memory_bytes / GIB - (memory_gib or _LARGEST_GIB)), default=None)
    return None
