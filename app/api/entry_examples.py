"""Entries of a team, as the OpenAPI document shows them. A test sends each request; all work as they stand."""

from typing import Any

from fastapi.openapi.models import Example

_STORED = {
    "revision": 1,
    "created_at": "2026-01-31T12:00:00Z",
    "created_by": "alice",
    "updated_at": "2026-01-31T12:00:00Z",
    "updated_by": "alice",
}

GPU: dict[str, Any] = {
    "name": "GeForce RTX 3080 with 20 GB",
    "nvml_names": ["NVIDIA GeForce RTX 3080"],
    "architecture": "Ampere GA10x",
    "compute_capability": "8.6",
    "memory_bytes": 21_474_836_480,
    "streaming_multiprocessors": 68,
    "memory_bandwidth_bytes_per_second": 760.3e9,
    "dense_flops_per_second": {"bf16": 59.5e12, "fp16": 59.5e12},
    "pcie_generation": 4,
    "as_of": "2026-01-31",
    "source": "nvidia-smi on node lab-3; rates of the 10 GB card",
}
GPU_REQUESTS: dict[str, Example] = {
    "modified": {"summary": "A card with more memory than it was sold with", "value": GPU},
}
NEW_GPU_REQUESTS: dict[str, Example] = {
    "modified": {
        "summary": "A card with more memory than it was sold with",
        "value": {"key": "rtx-3080-20gb", **GPU},
    },
}
GPU_ANSWER: dict[str, Any] = {
    "key": "rtx-3080-20gb",
    **GPU,
    "other_memory_bytes": [],
    "reserved_bytes": None,
    "usable_bytes": 20_803_747_840,
    "nvlink_bytes_per_second_per_direction": None,
    "interconnect": None,
    "thermal_design_power_watts": None,
    "mig_profiles": [],
    "notes": None,
    "team": _STORED,
}

SHAPE: dict[str, Any] = {
    "name": "Rack of eight H100",
    "gpu": "h100-sxm-80gb",
    "gpus_per_node": 8,
    "intra_node_link": "nvlink-4",
    "nvlink_domain_gpus": 8,
    "host_link": "pcie-5-x16",
    "network": "roce-400",
    "network_adapters": 4,
    "network_bytes_per_second_per_direction": 200e9,
    "numa_nodes": 2,
    "as_of": "2026-01-31",
    "source": "purchase order of January 2026",
}
SHAPE_REQUESTS: dict[str, Example] = {"rack": {"summary": "Eight H100 with four network adapters", "value": SHAPE}}
NEW_SHAPE_REQUESTS: dict[str, Example] = {
    "rack": {"summary": "Eight H100 with four network adapters", "value": {"key": "our-h100-rack", **SHAPE}}
}
SHAPE_ANSWER: dict[str, Any] = {
    "key": "our-h100-rack",
    **SHAPE,
    "is_front_end_only": False,
    "network_bytes_per_second_per_direction_per_gpu": 25e9,
    "instance_types": [],
    "notes": None,
    "team": _STORED,
}

INSTANCE: dict[str, Any] = {
    "provider": "aws",
    "instance_type": "p5.48xlarge",
    "region": "us-east-1",
    "gpu": "h100-sxm-80gb",
    "gpus": 8,
    "on_demand_per_hour_usd": 44.03,
    "reserved_per_hour_usd": 31.5,
    "as_of": "2026-01-31",
    "source": "our agreement of January 2026",
}
INSTANCE_REQUESTS: dict[str, Example] = {
    "agreed": {"summary": "What the team pays for eight H100", "value": INSTANCE},
}
NEW_INSTANCE_REQUESTS: dict[str, Example] = {
    "agreed": {
        "summary": "What the team pays for eight H100",
        "value": {"key": "aws:p5.48xlarge:us-east-1:agreed", **INSTANCE},
    },
}


def _price(per_hour_usd: float) -> dict[str, Any]:
    return {
        "per_hour_usd": per_hour_usd,
        "per_gpu_hour_usd": per_hour_usd / 8,
        "lowest_per_hour_usd": None,
        "highest_per_hour_usd": None,
        "as_of": "2026-01-31",
        "is_order_of_magnitude": False,
    }


INSTANCE_ANSWER: dict[str, Any] = {
    "key": "aws:p5.48xlarge:us-east-1:agreed",
    "provider": "aws",
    "instance_type": "p5.48xlarge",
    "region": "us-east-1",
    "gpu": "h100-sxm-80gb",
    "gpu_name": None,
    "gpus": 8.0,
    "cpus": None,
    "host_memory_bytes": None,
    "network_bytes_per_second": None,
    "on_demand": _price(44.03),
    "spot": None,
    "reserved": _price(31.5),
    "source": "our agreement of January 2026",
    "notes": None,
    "team": _STORED,
}
