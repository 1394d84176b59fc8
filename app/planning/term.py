"""One term of a memory estimate, before and after its sizes are put in."""

from dataclasses import dataclass
from typing import Literal

from app.planning.sizes import Size, Sizes
from app.sources import Source

Group = Literal["weights", "gradients", "optimizer_states", "activations", "temporary", "framework"]


@dataclass(frozen=True, slots=True)
class Term:
    """A named amount of bytes as a formula, with the group it counts for and its source."""

    name: str
    group: Group
    bytes: Size
    source: Source

    def at(self, sizes: Sizes) -> "Component":
        """The term for these sizes."""
        return Component(self.name, self.group, self.bytes.evaluate(sizes), str(self.bytes), self.source)


@dataclass(frozen=True, slots=True)
class Component:
    """A part of the estimate: `formula`, evaluated with the answer's `sizes`, gives `bytes`."""

    name: str
    group: Group
    bytes: int
    formula: str
    source: Source
