"""What the driver's reading holds beyond the allocator's: CUDA context, libraries, communicators, reserved but unused
blocks.

Each constant is named and sourced. They are expected values; `UPPER_*` are what `upper_bound_bytes` allows for
instead.
"""

from app.planning.sizes import Size, ceil_div, named
from app.planning.sources import ALLOCATOR, CUBLAS_WORKSPACE, CUDA_CONTEXT, NCCL_BUFFERS
from app.planning.specs import Gpu
from app.planning.term import Term
from app.units import MIB

CONTEXT_BASE_BYTES = 26 * MIB
CONTEXT_BYTES_PER_SM = 373 * MIB // 100
"""Plain CUDA context on driver 590: 518 MiB at 132 SMs, 248 at 60, 146 at 32."""

ASSUMED_SMS = 132
"""SMs where the GPU is not given: those of an H100."""

CUBLAS_BYTES = 8 * MIB + 128 * 1024
CUBLAS_HOPPER_BYTES = 32 * MIB

NCCL_COMMUNICATOR_BYTES = 544 * MIB
"""One communicator, measured per rank in a two-GPU group on A100; larger groups 688 MiB, H100 with eight ranks 1,085.
"""

ALLOCATOR_SLACK_DIVISOR = 20
"""Reserved over allocated is 1.05 in the median of 43 Megatron runs: a twentieth more."""

UPPER_ALLOCATOR_SLACK_DIVISOR = 10
"""Reserved over allocated is 1.10 in the median over 65 configurations of all kinds."""

UPPER_FIXED_BYTES = 512 * MIB
"""Kernels loaded on the way: a context with all modules loaded (eager) is 461 MiB larger than one that has just
started.
"""

ALLOCATED = named("allocated_bytes")


def expected(gpu: Gpu | None, ranks: int) -> list[Term]:
    """The terms of `framework_bytes`, for a job of `ranks` on `gpu` (None: an H100 is assumed)."""
    hopper_or_later = gpu is None or float(gpu.compute_capability) >= 9.0
    terms = [
        Term(
            "cuda_context",
            "framework",
            named("streaming_multiprocessors") * CONTEXT_BYTES_PER_SM + CONTEXT_BASE_BYTES,
            CUDA_CONTEXT,
        ),
        Term(
            "cublas_workspace",
            "framework",
            Size.of(CUBLAS_HOPPER_BYTES if hopper_or_later else CUBLAS_BYTES),
            CUBLAS_WORKSPACE,
        ),
        Term("allocator_slack", "framework", ceil_div(ALLOCATED, Size.of(ALLOCATOR_SLACK_DIVISOR)), ALLOCATOR),
    ]
    if ranks > 1:
        terms.append(Term("nccl_communicator", "framework", Size.of(NCCL_COMMUNICATOR_BYTES), NCCL_BUFFERS))
    return terms


VERIFIED_FAMILIES = frozenset({"bert", "gpt2", "llama", "mistral", "olmo", "opt", "qwen2", "qwen3"})
"""Model types whose activations agree with traced training steps, or that share the block of one that does."""


def upper_bound_bytes(*, allocated_bytes: int, moving_bytes: int, total_bytes: int, model_type: str) -> int:
    """What a run with these expected bytes may take.

    The wider allocator slack, and kernels loaded on the way. For a family that is not verified, `moving_bytes`
    (activations and temporary memory) once more: they may be half of the real ones.
    """
    widened = allocated_bytes // UPPER_ALLOCATOR_SLACK_DIVISOR - allocated_bytes // ALLOCATOR_SLACK_DIVISOR
    unverified = 0 if model_type in VERIFIED_FAMILIES else moving_bytes
    return total_bytes + widened + unverified + UPPER_FIXED_BYTES
