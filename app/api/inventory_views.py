"""What the inventory takes and gives."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi.openapi.models import Example
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.api.paging import PageQuery
from app.storage.inventory import GpuState, NodeState, NodeStatus, UnidentifiedGpu
from app.telemetry import GpuMemory, GpuProcess, GpuUtilization

Text = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f]+$")]


class NodeQuery(PageQuery):
    """Which nodes to list."""

    pool: Text | None = None
    """Nodes of this pool."""
    status: Annotated[list[NodeStatus], Field(default_factory=list, max_length=3)]
    """Nodes with this status; may be given several times."""


class GpuQuery(NodeQuery):
    """Which GPUs to list."""

    gpu: Text | None = None
    """Catalogue key of the card (`GET /v1/gpus`)."""
    name: Text | None = None
    """Product name exactly as the driver gives it, for cards that the catalogue does not have."""
    node: Text | None = None
    """GPUs of the node with this name."""
    min_free_bytes: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    """GPUs with at least this much memory free; those without a reading are left out."""
    include_absent: bool = False
    """Also GPUs that their node no longer reports."""


class View(BaseModel):
    """What every answer shares."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Receipt(View):
    """What became of a batch of reports. It is sent only once they are stored."""

    accepted: int
    """Reports that were new, and are stored now."""
    duplicates: int
    """Reports that were stored already, from an earlier attempt."""


class NodeView(View):
    """A node as its newest report describes it."""

    id: int
    """Never changes."""
    name: str
    """Unique in the fleet."""
    status: NodeStatus
    """By the age of the newest report."""
    error: str | None
    """Why the node cannot ask its driver; null when it can."""
    pool: str | None
    """Group of nodes that work is planned for."""
    labels: dict[str, str]
    """Free key-value pairs."""
    demo: bool
    """True when the node and its GPUs are made up."""
    gpus: int
    """GPUs that are there and say who they are."""
    unidentified_gpus: list[UnidentifiedGpu]
    """GPUs too sick to say who they are."""
    agent_version: str
    """Version of the agent."""
    driver_version: str | None
    """NVIDIA driver; null when it cannot be asked."""
    cuda_version: str | None
    """Newest CUDA version that the driver supports."""
    boot_id: str
    """Changes whenever the node starts."""
    sequence: int
    """Number of the newest report since then."""
    first_seen_at: datetime
    """When the node's first report came in."""
    sampled_at: datetime
    """When the newest report was taken, by the node's clock."""
    received_at: datetime
    """When it came in."""

    @classmethod
    def of(cls, state: NodeState) -> Self:
        """What is shown of a stored node."""
        said = ("name", "pool", "labels", "demo", "agent_version", "driver_version", "cuda_version")
        known = [name for name in cls.model_fields if name not in said]
        return cls(
            **{name: getattr(state.node, name) for name in said}, **{name: getattr(state, name) for name in known}
        )


class GpuView(View):
    """A GPU as the newest report that had it describes it. A reading is null when the card does not offer it."""

    uuid: str
    """The GPU's own identity."""
    node: str
    """Name of its node."""
    node_id: int
    """Id of its node."""
    node_status: NodeStatus
    """Status of its node."""
    pool: str | None
    """Pool of its node."""
    index: int
    """Position on the node."""
    name: str | None
    """Product name exactly as the driver gives it."""
    gpu: list[str]
    """Key of the catalogue's card that has this name and total memory. Without such a total, the keys of all that have
    the name: several where cards share one, none for an unknown card.
    """
    present: bool
    """False once its node reports without it."""
    demo: bool
    """True when the GPU is made up."""
    error: str | None
    """Why the GPU cannot be used; null when it can."""
    memory: GpuMemory | None
    """Memory as the driver counts it."""
    utilization: GpuUtilization | None
    """How busy the GPU was."""
    power_watts: float | None
    """Power drawn."""
    power_limit_watts: float | None
    """Power limit in force."""
    temperature_celsius: int | None
    """Temperature of the die."""
    pci_bus_id: str | None
    """PCI address."""
    mig_mode: Literal["enabled", "disabled"] | None
    """Whether the GPU is partitioned into MIG instances."""
    processes: list[GpuProcess] | None
    """Processes that hold memory on it."""
    first_seen_at: datetime
    """When the GPU was first reported."""
    sampled_at: datetime
    """When the reading was taken, by the node's clock."""
    received_at: datetime
    """When it came in."""

    @classmethod
    def of(cls, state: GpuState, keys: list[str]) -> Self:
        """What is shown of a stored GPU whose name the catalogue's cards with `keys` have."""
        reading = {name: getattr(state.reading, name) for name in cls.model_fields if hasattr(state.reading, name)}
        placed = {name: getattr(state, name) for name in cls.model_fields if hasattr(state, name)}
        return cls(**{**reading, **placed, "gpu": keys})


_MEMORY = {
    "total_bytes": 85_520_809_984,
    "used_bytes": 1_073_741_824,
    "free_bytes": 83_910_197_248,
    "reserved_bytes": 536_870_912,
}
_READING: dict[str, Any] = {
    "uuid": "GPU-2f6d1b1c-0b3e-4c6f-9a51-5a1d5b0a7c11",
    "index": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "memory": _MEMORY,
    "utilization": {"gpu_percent": 12, "memory_percent": 3},
    "power_watts": 118.4,
    "power_limit_watts": 700.0,
    "temperature_celsius": 34,
    "pci_bus_id": "00000000:19:00.0",
    "mig_mode": "disabled",
    "processes": [{"pid": 4711, "used_memory_bytes": 1_073_741_824, "name": "python3"}],
}

REPORT_EXAMPLES: dict[str, Example] = {
    "one node": {
        "summary": "One look at a node with one GPU",
        "value": {
            "reports": [
                {
                    "node": {
                        "name": "gpu-01",
                        "agent_version": "0.1.0",
                        "driver_version": "590.48.01",
                        "cuda_version": "13.1",
                        "pool": "research",
                        "labels": {"rack": "b4"},
                    },
                    "boot_id": "7b0c9f2e-3d5f-4a47-8b5f-8c7a1f6f2d10",
                    "sequence": 1,
                    "sampled_at": "2026-01-31T12:00:00Z",
                    "gpus": [_READING],
                }
            ]
        },
    },
    "driver away": {
        "summary": "A node that cannot ask its driver",
        "value": {
            "reports": [
                {
                    "node": {"name": "gpu-02", "agent_version": "0.1.0"},
                    "boot_id": "0f7c3e6a-1f5b-4f0e-9a6e-2f1d3c4b5a60",
                    "sequence": 1,
                    "sampled_at": "2026-01-31T12:00:00Z",
                    "gpus": [],
                    "error": "NVML: driver not loaded",
                }
            ]
        },
    },
}
NODE_EXAMPLE: dict[str, Any] = {
    "id": 1,
    "name": "gpu-01",
    "status": "online",
    "error": None,
    "pool": "research",
    "labels": {"rack": "b4"},
    "demo": False,
    "gpus": 1,
    "unidentified_gpus": [],
    "agent_version": "0.1.0",
    "driver_version": "590.48.01",
    "cuda_version": "13.1",
    "boot_id": "7b0c9f2e-3d5f-4a47-8b5f-8c7a1f6f2d10",
    "sequence": 1,
    "first_seen_at": "2026-01-31T12:00:00Z",
    "sampled_at": "2026-01-31T12:00:00Z",
    "received_at": "2026-01-31T12:00:00Z",
}
GPU_EXAMPLE: dict[str, Any] = {
    **_READING,
    "node": "gpu-01",
    "node_id": 1,
    "node_status": "online",
    "pool": "research",
    "gpu": ["h100-sxm-80gb"],
    "present": True,
    "demo": False,
    "error": None,
    "first_seen_at": "2026-01-31T12:00:00Z",
    "sampled_at": "2026-01-31T12:00:00Z",
    "received_at": "2026-01-31T12:00:00Z",
}
