"""What sharding, replication and communication need in passing: gathered weights, buckets, buffers of neighbours.

Each framework has its own; what stays between steps is in `app.planning.states`.
"""

from functools import lru_cache

from app.planning import deepspeed
from app.planning.ledger import Segment
from app.planning.recipe import Rules
from app.planning.sizes import Size, ceil_div, named, total
from app.planning.sources import (
    DDP,
    FSDP,
    MEGATRON_FUSION,
    NANOTRON,
    PIPELINE,
    RING_ATTENTION,
)
from app.planning.states import SHARDS, TRAINABLE, element_bytes, gathered_bytes, trainable
from app.planning.term import Term


def in_passing(rules: Rules, segments: tuple[Segment, ...], segment: Segment | None, *, backward: bool) -> list[Term]:
    """Buffers and gathered weights while `segment` runs forward or backward; None is the optimizer step."""
    terms = _of_sharding(rules, segments, segment, backward=backward)
    if segment is not None:
        terms += _of_neighbours(rules)
    return [term for term in terms if term.bytes]


def _of_sharding(rules: Rules, segments: tuple[Segment, ...], segment: Segment | None, *, backward: bool) -> list[Term]:
    if rules.framework == "deepspeed":
        return deepspeed.in_passing(rules, segments, segment, backward=backward)
    if rules.framework == "nanotron":
        return _nanotron(rules, segments, segment)
    if segment is None:
        return [] if rules.fully_sharded or not rules.replicated else _ddp(rules)
    if rules.fully_sharded:
        return _fsdp(rules, segments, segment, backward=backward)
    if rules.framework == "megatron":
        dummies = _dummy_gradients(segments)
        return [Term("transformer_engine.dummy_gradients", "temporary", dummies, MEGATRON_FUSION)]
    return _ddp(rules) if rules.replicated else []


def _ddp(rules: Rules) -> list[Term]:
    """Buckets of all gradients beside the gradients themselves, unless these are views of them."""
    if rules.framework not in ("transformers", "torchtitan"):
        return []
    copies = trainable(rules, split=False) * element_bytes(rules.precision.gradients)
    return [Term("ddp.buckets", "temporary", copies, DDP)]


def _fsdp(rules: Rules, segments: tuple[Segment, ...], segment: Segment, *, backward: bool) -> list[Term]:
    """Whole weights of the running group and of the one beside it; in backward the input of the reduction. Hybrid
    sharding reduces its shard over the replicas as well.
    """
    terms = [Term("fsdp.gathered_weights", "temporary", _gathered(rules, segments, segment), FSDP)]
    if segment.block and backward:
        reducing = element_bytes("fp32" if rules.framework == "torchtitan" else rules.precision.compute)
        reduced = total(weight.elements for weight in segment.weights if weight.trainable)
        terms.append(Term("fsdp.reduce_scatter_input", "temporary", reduced * reducing, FSDP))
        if rules.hybrid:
            terms.append(Term("fsdp.all_reduce_input", "temporary", ceil_div(reduced, SHARDS) * reducing, FSDP))
    return terms


def _gathered(rules: Rules, segments: tuple[Segment, ...], segment: Segment) -> Size:
    """Bytes of whole weights that FSDP holds: all of them at stage 2. Else, where embedding, norm and head form the
    root group, the root, this block and the prefetched one; torchtitan wraps embedding and head apart, and the head's
    gathered buffer stays beside its weights until the next gathering.
    """
    if rules.zero_stage == 2:
        return total(gathered_bytes(rules, part) * part.copies for part in segments)
    if rules.framework == "torchtitan":
        return gathered_bytes(rules, segment) * 2
    root = total(gathered_bytes(rules, part) for part in segments if not part.block)
    return root + gathered_bytes(rules, segment) * 2 if segment.block else root


@lru_cache(maxsize=512)
def _dummy_gradients(segments: tuple[Segment, ...]) -> Size:
    """Where matrix products add weight gradients into Megatron's buffer themselves, Transformer Engine gives autograd a
    16-bit dummy in their place: one for each shape of weight, kept for the whole job.
    """
    shapes = {
        (str(weight.rows), str(weight.columns)): weight.rows * weight.columns
        for segment in segments
        for operation in segment.operations
        if operation.linear is not None
        for weight in operation.weights
        if weight.rows is not None and weight.columns is not None and weight.trainable
    }
    return total(shapes.values()) * 2


def _nanotron(rules: Rules, segments: tuple[Segment, ...], segment: Segment | None) -> list[Term]:
    """DDP's 16-bit buckets without ZeRO; two buffers that gathered inputs come to; the FP32 logits of the micro batch
    before, which its code holds while the next one runs; the flat buffer that updated slices are gathered in, which is
    too large for the gaps that activations leave and so stays beside them in the allocator's cache.
    """
    compute_bytes = element_bytes(rules.precision.compute)
    terms = []
    if rules.zero_stage == 0 and rules.replicated:
        terms.append(Term("ddp.buckets", "temporary", trainable(rules, split=False) * compute_bytes, NANOTRON))
    if rules.kernels.sequence_parallel:
        whole = named("micro_batch_size") * named("sequence_length") * named("hidden_size")
        terms.append(Term("nanotron.gathered_inputs", "temporary", whole * (2 * compute_bytes), NANOTRON))
    head = segments[-1] if segments and not segments[-1].block else None
    if rules.accumulated and segment is not None and head is not None and head.name == "head":
        logits = head.operations[-1].inputs[0].bytes
        terms.append(Term("nanotron.logits_before", "temporary", logits, NANOTRON))
    if rules.zero_stage == 1 and rules.replicated:
        terms.append(Term("nanotron.gathered_slices", "temporary", TRAINABLE * compute_bytes, NANOTRON))
    return terms


def _of_neighbours(rules: Rules) -> list[Term]:
    """Tensors that come from other ranks: a pipeline stage's input and output gradient; with context parallelism the
    next rank's keys and values, and in backward their gradients, twice as they travel while others are used.
    """
    compute_bytes = element_bytes(rules.precision.compute)
    length = rules.kernels.stream_length
    stream = named("micro_batch_size") * named(length) * named("hidden_size") * compute_bytes
    terms = [Term("pipeline.received", "temporary", stream * 2, PIPELINE)] if rules.piped else []
    if rules.kernels.context_parallel:
        heads = "num_key_value_heads_per_rank" if rules.kernels.tensor_parallel else "num_key_value_heads"
        one = named("micro_batch_size") * named("sequence_length_per_rank") * named(heads) * named("head_dim")
        terms.append(Term("context.keys_and_values", "temporary", one * (4 * compute_bytes), RING_ATTENTION))
    return terms
