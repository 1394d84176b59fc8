"""What a team added to the catalogue, read from the database when somebody asks for it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import cast

from sqlalchemy.orm import Session

from app.catalog.gpus import Card, GpuFacts
from app.catalog.instances import Instance, InstanceFacts
from app.catalog.nodes import NodeFacts, NodeShape, shape_of
from app.catalog.team import Stored
from app.storage import entries
from app.storage.entries import Entry, Kind

Viewed = Card | NodeShape | Instance
"""An entry as the catalogue shows it."""


def view_of(entry: Entry) -> Viewed:
    """A stored entry as the catalogue shows it."""
    team = Stored(
        revision=entry.revision,
        created_at=entry.created_at,
        created_by=entry.created_by,
        updated_at=entry.updated_at,
        updated_by=entry.updated_by,
    )
    if entry.kind == "gpu":
        return GpuFacts.model_validate(entry.content).card(entry.key, team)
    if entry.kind == "node-shape":
        return shape_of(NodeFacts.model_validate(entry.content), entry.key, team)
    return InstanceFacts.model_validate(entry.content).instance(entry.key, team)


class TeamEntries:
    """The entries of the team, each kind read once, with what `session` gives, and only when it is needed."""

    def __init__(self, session: Callable[[], AbstractContextManager[Session]]) -> None:
        self._session = session

    @cached_property
    def cards(self) -> Mapping[str, Card]:
        """GPUs by key."""
        return cast("Mapping[str, Card]", self._read("gpu"))

    @cached_property
    def node_shapes(self) -> Mapping[str, NodeShape]:
        """Node shapes by key."""
        return cast("Mapping[str, NodeShape]", self._read("node-shape"))

    @cached_property
    def instances(self) -> Mapping[str, Instance]:
        """Instances by key."""
        return cast("Mapping[str, Instance]", self._read("instance"))

    def _read(self, kind: Kind) -> Mapping[str, Viewed]:
        with self._session() as session:
            return {entry.key: view_of(entry) for entry in entries.list_entries(session, kind)}
