"""`/v1/gpus`: the GPUs of the catalogue."""

from typing import Annotated

from fastapi import Path, Query

from app.api.answers import shown_with
from app.api.auth import Viewer
from app.api.deps import CatalogDep
from app.api.paging import Page, PageQuery, page_of
from app.api.problems import raises
from app.api.routing import v1_router
from app.errors import NotFound
from app.planning.specs import Gpu

router = v1_router("catalogue")


class GpuQuery(PageQuery):
    """Filters of the list of GPUs."""

    architecture: Annotated[str, Query(min_length=1, max_length=100)] | None = None
    """NVIDIA architecture, such as `Hopper`; upper or lower case."""

    nvml_name: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """The exact name that NVML gives the card, such as `NVIDIA H100 80GB HBM3`."""


@router.get("/gpus", summary="List the GPUs of the catalogue", operation_id="listGpus")
@shown_with(query=GpuQuery(limit=1, architecture="Hopper"))
def list_gpus(query: Annotated[GpuQuery, Query()], catalog: CatalogDep, _: Viewer) -> Page[Gpu]:
    """GPUs by key: memory as the driver reports it, dense peak rates, bandwidths, and where each figure comes from."""
    found = [
        (key, gpu)
        for key, gpu in sorted(catalog.gpus.items())
        if (query.architecture is None or gpu.architecture.lower() == query.architecture.lower())
        and (query.nvml_name is None or query.nvml_name in gpu.nvml_names)
    ]
    return page_of(found, query, "gpus")


@router.get("/gpus/{key}", summary="Read one GPU", operation_id="getGpu", responses=raises(NotFound))
@shown_with(key="h100-sxm-80gb")
def get_gpu(
    key: Annotated[str, Path(description="Key or alias of the GPU.", examples=["h100-sxm-80gb"])],
    catalog: CatalogDep,
    _: Viewer,
) -> Gpu:
    """A GPU by its key or one of its aliases."""
    return catalog.card_at_path(key)
