"""What a team adds to the catalogue: entries of its own beside those that ship, each with a source and a day."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from app.planning.specs import Spec

if TYPE_CHECKING:
    from app.catalog.gpus import Card
    from app.catalog.instances import Instance
    from app.catalog.nodes import NodeShape


class Stored(Spec):
    """Who stored an entry, and which state of it this is."""

    revision: int
    """Number of the state, growing with each change; the `ETag` is this number in quotes."""
    created_at: datetime
    """When it was stored first."""
    created_by: str
    """Name of the token that stored it first."""
    updated_at: datetime
    """When it was changed last."""
    updated_by: str
    """Name of the token that changed it last."""


class TeamFacts(Protocol):
    """A team's own entries by key. They are asked for only when what ships has no such entry, or for a list."""

    @property
    def cards(self) -> Mapping[str, "Card"]:
        """Its GPUs."""

    @property
    def node_shapes(self) -> Mapping[str, "NodeShape"]:
        """Its node shapes."""

    @property
    def instances(self) -> Mapping[str, "Instance"]:
        """Its instances, which is to say: its prices."""


class NoTeam:
    """The catalogue alone: what the command line and the examples of the documentation see."""

    cards: Mapping[str, "Card"] = {}
    node_shapes: Mapping[str, "NodeShape"] = {}
    instances: Mapping[str, "Instance"] = {}
