"""Node shapes: which GPUs a machine has, and what joins them inside and outside."""

from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, StrictBool, computed_field

from app.catalog.rows import Day, Rate, Text, in_base_units, tables
from app.catalog.team import Stored
from app.planning.specs import Degree, Name, Spec


class NodeFacts(Spec):
    """What a node has: all that a team has to say of a shape of its own."""

    name: Name
    """Name for people."""
    gpu: Name
    """Key of its GPUs (`GET /v1/gpus`)."""
    gpus_per_node: Degree
    """GPUs in a node."""
    intra_node_link: Name | None = None
    """Key of the link between its GPUs (`GET /v1/interconnects`); null when that is PCIe alone."""
    nvlink_domain_gpus: Degree | None = None
    """GPUs that reach one another over NVLink, of other nodes too; null without NVLink, or where nobody has said."""
    host_link: Name | None = None
    """Key of the link between a GPU and its host; null where nobody has said."""
    network: Name | None = None
    """Key of the network adapter's link; null where nobody has said which it is."""
    network_adapters: Degree | None = None
    """Adapters that carry GPU traffic; null where nobody has said."""
    network_bytes_per_second_per_direction: Rate | None = None
    """Network bandwidth of a node for GPU traffic, in one direction."""
    is_front_end_only: StrictBool = False
    """True when GPU traffic has no network of its own."""
    numa_nodes: Degree | None = None
    """Memory domains of the host; null where nobody has said."""
    as_of: Day
    """The day of these facts."""
    source: Text
    """Where the facts come from."""
    notes: Text | None = None
    """What a planner should know."""


class NodeShape(NodeFacts):
    """A kind of node."""

    key: Name
    """Key of the shape, such as `dgx-h100`."""
    instance_types: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    """Instances of clouds that are such a node, as their sellers call them."""
    team: Stored | None = None
    """Who stored it; null for what ships with Tonnage."""

    @computed_field  # type: ignore[prop-decorator] # mypy does not know a property may be decorated
    @property
    def network_bytes_per_second_per_direction_per_gpu(self) -> float | None:
        """Network bandwidth of a node, over its GPUs."""
        whole = self.network_bytes_per_second_per_direction
        return None if whole is None else whole / self.gpus_per_node


def shape_of(facts: NodeFacts, key: str, team: Stored) -> NodeShape:
    """The entry of the catalogue that a team's facts are."""
    return NodeShape(key=key, team=team, **facts.model_dump())


@cache
def node_shapes() -> MappingProxyType[str, NodeShape]:
    """All node shapes that ship, by key. Raises ValueError for a row that is wrong."""
    rows = tables(files("app.catalog") / "node_shapes.toml")
    as_of = rows.pop("collected_on")
    shapes = {key: NodeShape(key=key, as_of=as_of, **in_base_units(row)) for key, row in rows.items()}
    return MappingProxyType(shapes)
