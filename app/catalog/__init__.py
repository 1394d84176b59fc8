"""The facts the product ships: GPUs, links, node shapes, cloud instances and models, as data files with one loader.
Names match whole, or the nearest are named. A team's own entries stand beside what ships.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TypeVar

from app.catalog import cards
from app.catalog.cards import Model
from app.catalog.gpus import MIG, Card, Cards, load_cards, named, not_one
from app.catalog.instances import Instance, instances
from app.catalog.interconnects import Interconnect, Sweep, interconnects, sweeps
from app.catalog.nodes import NodeShape, node_shapes
from app.catalog.team import NoTeam, TeamFacts
from app.errors import NotFound, UnknownName
from app.planning.specs import Gpu

_LONGEST_NAME = 200
"""Of a longer name from a URL, the rest is not looked at: likeness takes time with the square of the length."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything the catalogue holds, read-only. Look-ups accept exact keys (upper or lower case) and aliases only.

    What ships comes first: an entry of the team with a key that a later version ships too is listed, and a name means
    the shipped one.
    """

    gpus: Mapping[str, Gpu]
    """Whole cards that ship, by key."""
    models: Mapping[str, Model]
    """Models by id."""
    _cards: Cards
    _model_ids: Mapping[str, str]
    team: TeamFacts = field(default_factory=NoTeam)
    """What the team adds."""

    def with_team(self, team: TeamFacts) -> "Catalog":
        """This catalogue, with the entries of a team beside it."""
        return replace(self, team=team)

    def gpu(self, key: str, *, pointer: str = "/hardware/gpu") -> Gpu:
        """The GPU with this key: a card, a MIG instance of one, or the team's own. Raises UnknownName with the nearest
        keys, pointing at `pointer`.
        """
        found = self._find_card(key)
        if found is None:
            raise self._unknown_gpu(key, pointer)
        return self.gpus.get(found.key) or found.plain()

    def card_at_path(self, key: str) -> Card:
        """The GPU of a URL path, with all that is recorded of it. Raises NotFound with the nearest keys."""
        found = self._find_card(key)
        if found is None:
            raise NotFound(self._unknown_gpu(key[:_LONGEST_NAME], "").detail)
        return found

    def cards(self) -> Iterator[Card]:
        """Every card that ships, then the team's own."""
        yield from self._cards.cards.values()
        yield from self.team.cards.values()

    def ships_gpu(self, key: str) -> bool:
        """Whether the key or alias is one that ships, be it of an instance."""
        lowered = key.lower()
        return lowered in self._cards.aliases or self._shipped_card(lowered) is not None

    def cards_reported_as(self, name: str, total_bytes: int | None = None) -> tuple[Card, ...]:
        """The cards that report exactly this NVML name and, if it is given, this total; what ships comes first, and the
        team's own only where nothing that ships does. Of a MIG instance, the name is what CUDA calls the device.
        """
        return named(self._shipped_cards(), name, total_bytes) or named(self.team.cards.values(), name, total_bytes)

    def not_reported(self, name: str, total_bytes: int | None) -> UnknownName:
        """Why no single card can be told from this name and total."""
        everything = [*self._shipped_cards(), *self.team.cards.values()]
        return not_one(everything, name[:_LONGEST_NAME], total_bytes)

    @property
    def interconnects(self) -> Mapping[str, Interconnect]:
        """Links by key."""
        return interconnects()

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """Collective operations measured over all sizes of messages."""
        return sweeps()

    @property
    def node_shapes(self) -> Mapping[str, NodeShape]:
        """Node shapes that ship, by key."""
        return node_shapes()

    @property
    def instances(self) -> Mapping[str, Instance]:
        """Cloud instances that ship, by key."""
        return instances()

    def interconnect(self, key: str, *, pointer: str) -> Interconnect:
        """The link with this key. Raises UnknownName with the nearest keys, pointing at `pointer`."""
        return _exact("interconnect", key, (self.interconnects,), pointer=pointer, see="GET /v1/interconnects")

    def interconnect_at_path(self, key: str) -> Interconnect:
        """The link of a URL path. Raises NotFound with the nearest keys."""
        return _at_path("interconnect", key, (self.interconnects,), see="GET /v1/interconnects")

    def node_shape_at_path(self, key: str) -> NodeShape:
        """The node shape of a URL path, shipped or the team's. Raises NotFound with the nearest keys."""
        return _at_path("node shape", key, (self.node_shapes, self.team.node_shapes), see="GET /v1/node-shapes")

    def instance_at_path(self, key: str) -> Instance:
        """The instance of a URL path, shipped or the team's. Raises NotFound with the nearest keys."""
        return _at_path("instance", key, (self.instances, self.team.instances), see="GET /v1/instances")

    def model(self, id: str, *, pointer: str = "/model/id") -> Model:
        """The model with this id. Raises UnknownName with the nearest ids, pointing at `pointer`."""
        found = self._find_model(id)
        if found is None:
            raise self._unknown_model(id, pointer)
        return found

    def model_at_path(self, id: str) -> Model:
        """The model of a URL path. Raises NotFound with the nearest ids."""
        found = self._find_model(id)
        if found is None:
            known = list(self.models)
            raise NotFound(
                UnknownName.among("model", id[:_LONGEST_NAME], known, pointer="", see="GET /v1/models").detail
            )
        return found

    def _find_card(self, key: str) -> Card | None:
        lowered = key.lower()
        return self._shipped_card(lowered) or self.team.cards.get(lowered)

    def _shipped_card(self, lowered: str) -> Card | None:
        card, mig, profile = lowered.partition(MIG)
        known = self._cards.aliases.get(card, card)
        return self._cards.mig_instances.get(f"{known}{mig}{profile}") if mig else self._cards.cards.get(known)

    def _shipped_cards(self) -> Iterator[Card]:
        yield from self._cards.cards.values()
        yield from self._cards.mig_instances.values()

    def _unknown_gpu(self, key: str, pointer: str) -> UnknownName:
        card, mig, profile = key.lower().partition(MIG)
        whole = self._shipped_card(card)
        if mig and whole is not None and profile in {known.profile for known in whole.mig_profiles}:
            unmeasured = f"{card} can be split into {profile}, but nobody has published the memory of such an instance"
            return UnknownName.at(pointer, f"{unmeasured}; store what your driver reports with POST /v1/gpus")
        known = [*self._cards.cards, *self.team.cards, *(self._cards.mig_instances if mig else ())]
        return UnknownName.among("gpu", key, known, pointer=pointer, see="GET /v1/gpus")

    def _unknown_model(self, id: str, pointer: str) -> UnknownName:
        return UnknownName.among("model", id, list(self.models), pointer=pointer, see="GET /v1/models")

    def _find_model(self, id: str) -> Model | None:
        known = self._model_ids.get(id.lower())
        return None if known is None else self.models[known]


@cache
def load() -> Catalog:
    """Reads and checks GPUs and models, once; the rest when it is asked for. A row that lacks a source or a figure
    raises, and nothing starts.
    """
    folder = files("app.catalog")
    shipped = load_cards(folder)
    models = cards.models(folder / "models")
    return Catalog(
        gpus=MappingProxyType({key: card.plain() for key, card in shipped.cards.items()}),
        models=MappingProxyType(models),
        _cards=shipped,
        _model_ids=MappingProxyType({id.lower(): id for id in models}),
    )


def _exact(kind: str, key: str, tables: tuple[Mapping[str, T], ...], *, pointer: str, see: str) -> T:
    lowered = key.lower()
    for table in tables:
        if lowered in table:
            return table[lowered]
    raise UnknownName.among(kind, key, [known for table in tables for known in table], pointer=pointer, see=see)


def _at_path(kind: str, key: str, tables: tuple[Mapping[str, T], ...], *, see: str) -> T:
    try:
        return _exact(kind, key[:_LONGEST_NAME], tables, pointer="", see=see)
    except UnknownName as error:
        raise NotFound(error.detail) from None
