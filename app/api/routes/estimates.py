"""`/v1/estimates`: what a training job needs."""

from typing import Annotated

from fastapi import Body

from app.api import examples
from app.api.answers import shown_with
from app.api.auth import Viewer
from app.api.deps import CatalogDep, HubDep
from app.api.requests import MemoryRequest, find_in_hub, resolve_memory
from app.api.routing import v1_router
from app.planning import memory
from app.planning.memory import MemoryEstimate

router = v1_router("estimates")


@router.post("/estimates/memory", summary="Estimate memory per GPU", operation_id="estimateMemory")
@shown_with(request=MemoryRequest.model_validate(examples.EIGHT_H100S), hub=None)
def estimate_memory(
    request: Annotated[MemoryRequest, Body(openapi_examples=examples.MEMORY)],
    catalog: CatalogDep,
    hub: HubDep,
    _: Viewer,
) -> MemoryEstimate:
    """What each GPU of a training job holds at its peak: component by component, each with its formula and source.

    `per_gpu` and `components` are the heaviest GPU's. Its `total_bytes` is the expected reading of nvidia-smi; `fits`
    is judged by `upper_bound_bytes`, which is calibrated on published runs: where the request has features that no run
    or traced step covers, it is wider and `warnings` names them. `pipeline_stages` has every stage's peak as
    nvidia-smi, `torch.cuda.max_memory_reserved` and `max_memory_allocated` count it, and `memory_allocated` between
    steps, and the micro batches in flight on each of its `chunks`. `host` is what offloading and paged optimizers keep
    in host memory. Every formula gives its bytes when evaluated with the answer's `sizes`.
    """
    found = find_in_hub(request.model, catalog, hub)
    return memory.estimate(resolve_memory(request, catalog, found))
