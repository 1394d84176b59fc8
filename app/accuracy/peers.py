"""What other estimators say about the same job, computed from their published formulas.

Each is a pure function of a request and returns bytes per GPU, or None for a job that it cannot express. None of them
knows adapters, so all answer for full training only.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.planning.memory import MemoryInputs


@dataclass(frozen=True, slots=True)
class Peer:
    """An estimator, where its formula stands, and the formula."""

    name: str
    source: str
    bytes: Callable[["Shape"], float | None]


@dataclass(frozen=True, slots=True)
class Shape:
    """A job in the letters of the papers: sequence s, micro batch b, hidden h, width f, layers L, heads a and k,
    vocabulary V; tensor t, pipeline p, chunks v, data d; m micro batches in a step.
    """

    parameters: int
    s: int
    b: int
    h: int
    f: int
    L: int
    a: int
    k: int
    V: int
    t: int
    p: int
    v: int
    d: int
    m: int
    zero: int
    is_16_bit: bool
    sequence_parallel: bool
    recompute: str
    flash: bool
    gated: bool
    tied: bool
    experts: int
    offload: str
    framework: str
    context: int
    gpus: int


def shape_of(inputs: MemoryInputs) -> Shape | None:
    """The job in the papers' letters; None for what no peer knows."""
    training, layout, sizes = inputs.training, inputs.parallelism, inputs.architecture.sizes
    if training.method != "full" or training.frozen_layers:
        return None
    steps = training.gradient_accumulation_steps or 1
    compute = training.precision if isinstance(training.precision, str) else "bf16-mixed"
    vocabulary, hidden = sizes["vocab_size"], sizes["hidden_size"]
    components = {count.name: count.parameters for count in inputs.architecture.components}
    return Shape(
        parameters=inputs.architecture.parameters,
        s=training.sequence_length or 2048,
        b=training.micro_batch_size,
        h=hidden,
        f=sizes.get("intermediate_size", 4 * hidden),
        L=sizes.get("num_hidden_layers", 1),
        a=sizes.get("num_attention_heads", 1),
        k=sizes.get("num_key_value_heads", 1),
        V=vocabulary,
        t=layout.tensor_parallel_size,
        p=layout.pipeline_parallel_size,
        v=layout.virtual_pipeline_size,
        d=layout.data_parallel_size,
        m=steps,
        zero=layout.zero_stage,
        is_16_bit=compute != "fp32",
        sequence_parallel=layout.sequence_parallel,
        recompute=training.recompute,
        flash=training.attention in ("flash", "sdpa") or (training.attention is None and compute != "fp32"),
        gated=components.get("mlp", 0)
        > 2.5 * sizes.get("num_hidden_layers", 1) * hidden * sizes.get("intermediate_size", 1),
        tied=components.get("lm_head", 0) < vocabulary * hidden,
        experts=sizes.get("num_experts", 0),
        offload=layout.offload,
        framework=training.framework,
        context=layout.context_parallel_size,
        gpus=layout.ranks,
    )


def _lecture(job: Shape) -> float:
    return job.parameters * (12 if job.is_16_bit else 24) / (job.t * job.p)


def _textbook(job: Shape) -> float:
    parameters = job.parameters / (job.t * job.p)
    whole = {0: 16.0, 1: 4 + 12 / job.d, 2: 2 + 14 / job.d, 3: 16 / job.d}[job.zero]
    return parameters * whole + korthikanti(job)


def korthikanti(job: Shape) -> float:
    """Activations of the first pipeline stage: table 2 of the paper, with what is in flight."""
    tokens = job.s / job.context * job.b
    scores = 0.0 if job.flash or job.recompute == "selective" else 5 * job.a * job.s / job.context / job.h
    if job.recompute == "full":
        layer = 2 * tokens * job.h / (job.t if job.sequence_parallel else 1)
    elif job.sequence_parallel:
        layer = tokens * job.h * (34 + scores) / job.t
    else:
        layer = tokens * job.h * (10 + 24 / job.t + scores / job.t)
    return layer * job.L * min(1.0, job.m / job.p)


def _accelerate(job: Shape) -> float | None:
    if job.gpus > 1 or job.offload != "none":
        return None
    return job.parameters * (8.0 if job.is_16_bit else 16.0)


def _deepspeed(job: Shape) -> float | None:
    if job.zero not in (2, 3) or job.t * job.p * job.context > 1:
        return None
    largest = max(job.V * job.h, 4 * job.h * job.h + (3 if job.gated else 2) * job.h * job.f)
    if job.zero == 2:
        return 2.0 * job.parameters + (0 if job.offload != "none" else 18 * job.parameters / job.d)
    kept = {"none": 18, "optimizer": 2, "optimizer+parameters": 0}[job.offload]
    return 4.0 * largest + kept * job.parameters / job.d


def _megatron(job: Shape) -> float | None:
    if job.framework not in ("megatron", "nanotron") or job.zero > 1:
        return None
    embedding = job.h * job.V
    norm = 1 if job.gated else 2
    attention = 2 * job.h * job.h * (1 + job.k / job.a)
    mlp = 2 * job.h * (job.f * (1.5 if job.gated else 1) * max(1, job.experts) + norm)
    block = (attention + mlp) * job.L + norm * job.h
    heaviest = (block / job.p + embedding + (0 if job.tied or job.p > 1 else embedding)) / job.t
    states = heaviest * (18 if job.zero == 0 else 6 + 12 / job.d)
    penalty = 1 + (job.p - 1) / (job.p * job.v) if job.v > 1 else min(1.0, job.m / job.p)
    inputs = (8 + job.h) * job.s * job.b * job.p
    if job.sequence_parallel and job.recompute == "selective":
        kept = (job.s * job.b * job.h * (18 + 4 * job.f / job.h) * job.L + inputs) * penalty
        kept += 4 * job.s * job.b * (job.h + job.V) if job.p == 1 else 0
        return states + kept / job.t
    kept = (job.s * job.b * job.h * (10 + 24 / job.t) * job.L + inputs) * penalty
    kept += 2 * (job.s * job.b * job.V / job.t + job.s * job.b * job.h) if job.p == 1 else 0
    return states + 1.05 * kept


PEERS = (
    Peer(
        "lecture",
        "24 bytes per parameter in FP32, 12 in 16 bit, of which a tensor- and pipeline-parallel rank holds its part",
        _lecture,
    ),
    Peer(
        "16 B/parameter + Korthikanti",
        "ZeRO paper (arXiv 1910.02054) for states, Korthikanti et al. (arXiv 2205.05198), table 2, for activations",
        _textbook,
    ),
    Peer(
        "accelerate",
        "huggingface/accelerate src/accelerate/commands/estimate.py, estimate_training_usage: one GPU",
        _accelerate,
    ),
    Peer(
        "DeepSpeed estimator",
        "deepspeed/runtime/zero/stage_1_and_2.py and stage3.py, estimate_zero*_model_states_mem_needs",
        _deepspeed,
    ),
    Peer(
        "Megatron-LM report",
        "megatron/training/theoretical_memory_usage.py, report_theoretical_memory",
        _megatron,
    ),
)


def answers(inputs: MemoryInputs) -> Mapping[str, int]:
    """Bytes per GPU by the name of each peer that can express the job."""
    job = shape_of(inputs)
    if job is None:
        return MappingProxyType({})
    said = {peer.name: peer.bytes(job) for peer in PEERS}
    return MappingProxyType({name: math.ceil(amount) for name, amount in said.items() if amount is not None})
