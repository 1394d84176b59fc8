"""What the driver's reading holds beyond the allocator's: CUDA context, libraries, communicators, reserved but unused
blocks.

Each constant is named and sourced. They are expected values; `UPPER_*` are what `upper_bound_bytes` allows for
instead.
"""

from functools import lru_cache
from types import MappingProxyType

from app.planning.sizes import Size, ceil_div, named
from app.planning.sources import ALLOCATOR, CUBLAS_WORKSPACE, CUDA_CONTEXT, NARROW_CUDA_CONTEXT, NCCL_BUFFERS
from app.planning.specs import Framework, Gpu
from app.planning.term import Term
from app.units import MIB

CONTEXT_BASE_BYTES = 26 * MIB
CONTEXT_BYTES_PER_SM = 373 * MIB // 100
"""Plain CUDA context on data-centre GPUs, whose SMs hold 64 warps: on Hopper with driver 590 518 MiB at 132 SMs, 248 at
60, 146 at 32. On A100 481 MiB were read (CUDA 12.1, PyTorch's first kernels included), 429 by this rule.
"""

NARROW_CONTEXT_BYTES_PER_SM = 305 * MIB // 100
"""On cards whose SMs hold 48 warps: 555 MiB at 188 SMs (RTX PRO 6000, Blackwell), 426 at 142 (RTX 6000 Ada), 107 at 34
(RTX 4060 Ti, Ada), 256 at 82 (RTX 3090, Ampere): within 4 % of this rule, under CUDA 12.8 to 13. Turing's T4, with 32
warps, has 141 at 40 SMs: 122 by this rule. No two readings of one card tell versions of CUDA apart; before 11.7, which
loaded every kernel at once, a context took 0.9 to 1.8 GiB.
"""

NARROW = frozenset({"7.5", "8.6", "8.7", "8.9", "12.0", "12.1"})
"""Compute capabilities of GPUs with at most 48 warps per SM."""

HOPPER = 9.0
"""Compute capability from which on cuBLAS takes larger workspaces."""

ASSUMED_SMS = 132
"""SMs where the GPU is not given: those of an H100."""

CUBLAS_BYTES = 8 * MIB + 128 * 1024
CUBLAS_HOPPER_BYTES = 32 * MIB
"""PyTorch's workspace of one cuBLAS handle; forward's thread and autograd's have one each."""

TRANSFORMER_ENGINE_BYTES = 4 * MIB
TRANSFORMER_ENGINE_HOPPER_BYTES = 32 * MIB
"""Transformer Engine's own cuBLAS workspace, which Megatron has beside PyTorch's."""

TRANSFORMER_ENGINE_STREAMS = 4
"""Streams over which Transformer Engine spreads the experts' matrix products, each with a workspace."""

NCCL_FIRST_COMMUNICATOR_BYTES = 544 * MIB
"""NCCL with one communicator, measured per rank in a two-GPU group on A100; 688 MiB in larger groups, 1,085 on H100 in
one of eight.
"""

NCCL_COMMUNICATOR_BYTES = 147 * MIB
"""Each further communicator: 16 channels of 9.19 MiB of buffers (NCCL 2.30, one connection)."""

ALLOCATOR_SLACK_PERCENT = MappingProxyType(
    {"megatron": 5, "nanotron": 6, "transformers": 10, "torchtitan": 10, "deepspeed": 10}
)
"""Reserved beyond allocated, in percent of it, where gaps between blocks cannot be used: 5 in the median of Megatron's
runs (SimuMax), 6 of nanotron's, 10 over all kinds of PyTorch jobs.
"""

UPPER_SLACK_PERCENT = MappingProxyType(
    {"megatron": 15, "nanotron": 25, "transformers": 30, "torchtitan": 35, "deepspeed": 25}
)
"""What the upper bound allows for beyond the expected allocation, in percent of it: about the 95th percentile of
measured over expected memory of each framework's runs (docs/accuracy.md).
"""

UPPER_SHARDED_PERCENT = 20
"""More of it where FSDP gathers weights in a stream of its own, whose blocks other streams cannot take over."""

UPPER_FIXED_BYTES = 512 * MIB
"""Kernels loaded on the way: a context with all modules loaded (eager) is 461 MiB larger than one that has just
started.
"""

UPPER_COMMUNICATOR_BYTES = 256 * MIB
"""A communicator whose group is larger, or that has exchanged point to point."""

UNCOVERED_MOVING_PERCENT = 110
"""Of activations and temporary memory, where a feature that decides about them is not covered, or the model's family is
not verified: 95 of 100 features that are covered were off by no more in the median of their runs (docs/accuracy.md).
"""

UNCOVERED_STATES_PERCENT = 25
"""Of weights, gradients and states, where a feature that decides what a rank keeps of them is not covered: taken from
the covered ones in the same way. An optimizer or implementation that is not covered gets a copy of the gradients
instead, since its states are exact (they are compared with the real classes) and only its scratch is not.
"""

UNCOVERED_GPU_BYTES = 512 * MIB
"""Where no run was on a GPU of this architecture: a context that is as much larger as one with all modules loaded."""

ALLOCATED = named("allocated_bytes")

OTHER_PHASE = Term("other_phase", "framework", named("other_phase_bytes"), ALLOCATOR)
"""What the step's gradients and scratch need and the backward's activations do not leave room for, or the other way
round: blocks of one phase are cached and too small for the other, until the GPU is full and the cache is given back.
"""

RESERVED = frozenset({"allocator_slack", "other_phase"})
"""Terms that the allocator has reserved beyond what it has given out."""


def expected(
    gpu: Gpu | None, framework: Framework, communicators: int, *, deterministic: bool, experts: bool
) -> tuple[Term, ...]:
    """The terms of `framework_bytes` on `gpu` (None: an H100 is assumed), for a rank that takes part in
    `communicators`; what the other phase of the step needs is not known here.
    """
    hopper_or_later = gpu is None or float(gpu.compute_capability) >= HOPPER
    narrow = gpu is not None and gpu.compute_capability in NARROW
    return _expected(hopper_or_later, narrow, framework, communicators, deterministic, experts)


@lru_cache(maxsize=512)
def _expected(
    hopper_or_later: bool,
    narrow: bool,
    framework: Framework,
    communicators: int,
    deterministic: bool,
    experts: bool,
) -> tuple[Term, ...]:
    slack = ALLOCATOR_SLACK_PERCENT[framework]
    multiprocessors = named("streaming_multiprocessors")
    context = multiprocessors * CONTEXT_BYTES_PER_SM + CONTEXT_BASE_BYTES
    if narrow:
        context = multiprocessors * NARROW_CONTEXT_BYTES_PER_SM
    workspaces = _workspaces(hopper_or_later, framework, deterministic=deterministic, experts=experts)
    terms = [
        Term("cuda_context", "framework", context, NARROW_CUDA_CONTEXT if narrow else CUDA_CONTEXT),
        Term("cublas_workspace", "framework", Size.of(workspaces), CUBLAS_WORKSPACE),
        Term("allocator_slack", "framework", ceil_div(ALLOCATED * slack, Size.of(100)), ALLOCATOR),
    ]
    if communicators:
        buffers = NCCL_FIRST_COMMUNICATOR_BYTES + (communicators - 1) * NCCL_COMMUNICATOR_BYTES
        terms.append(Term("nccl_communicators", "framework", Size.of(buffers), NCCL_BUFFERS))
    return tuple(terms)


def _workspaces(hopper_or_later: bool, framework: Framework, *, deterministic: bool, experts: bool) -> int:
    """cuBLAS workspaces, which the caching allocator gives out and keeps: part of what it reports as allocated.
    Transformer Engine has one of its own, and one for each of the streams of grouped matrix products.
    """
    amount = 2 * (CUBLAS_HOPPER_BYTES if hopper_or_later or deterministic else CUBLAS_BYTES)
    if framework == "megatron":
        each = TRANSFORMER_ENGINE_HOPPER_BYTES if hopper_or_later else TRANSFORMER_ENGINE_BYTES
        amount += each * (1 + TRANSFORMER_ENGINE_STREAMS if experts else 1)
    return amount


VERIFIED_FAMILIES = frozenset(
    """
    albert bart bert blenderbot blenderbot-small bloom camembert cohere data2vec-text deberta-v2 deepseek_v2
    deepseek_v3 distilbert falcon gemma gemma2 gemma3 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss
    granite llama marian mbart mistral mixtral modernbert mt5 olmo olmo2 olmoe opt pegasus phi phi3 phimoe plbart
    qwen2 qwen2_moe qwen3 qwen3_moe roberta stablelm starcoder2 t5 xlm-roberta
    """.split()  # noqa: SIM905 - fifty quoted names would hide the names
)
"""Model types whose activations agree with traced training steps, or that share the block of one that does."""


def upper_bound_bytes(
    *, allocated_bytes: int, outside_bytes: int, framework: Framework, fully_sharded: bool, communicators: int
) -> int:
    """What a run with these expected bytes may take, where every feature of it is covered by runs that were measured:
    the highest reading of the driver that is to be expected.

    The framework's wider slack, kernels loaded on the way, larger communicators. What else is allowed for outside of
    what was ever measured, `app.planning.coverage` says.
    """
    percent = UPPER_SLACK_PERCENT[framework] + (UPPER_SHARDED_PERCENT if fully_sharded else 0)
    larger = UPPER_FIXED_BYTES + communicators * UPPER_COMMUNICATOR_BYTES
    return allocated_bytes + allocated_bytes * percent // 100 + outside_bytes + larger
