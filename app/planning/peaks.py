"""The peak of one pipeline stage: the largest of all moments of a step.

End of forward, each operation's backward, the optimizer step: each is a sum of terms, as formulas that are made once
for given rules and layers. A stage is priced by evaluating those sums; its terms are spelled out when asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from app.planning import overheads, states
from app.planning.architecture import Architecture
from app.planning.ledger import Segment
from app.planning.passing import in_passing
from app.planning.pipeline import Stage, arrange, treat_all
from app.planning.recipe import Recipe, Rules
from app.planning.sizes import Size, total
from app.planning.sources import (
    AUTOCAST,
    AUTOGRAD,
    CHECKPOINT,
    CROSS_ENTROPY,
    FLASH_ATTENTION,
    FUSED_CROSS_ENTROPY,
    LIGER,
    MEGATRON_ACTIVATIONS,
    Source,
)
from app.planning.specs import Gpu
from app.planning.term import Component, Term
from app.planning.timeline import Moment, moments
from app.precision.formats import FORMATS


def segments_of(recipe: Recipe, architecture: Architecture, stage: Stage | None) -> tuple[Segment, ...]:
    """What one pipeline stage runs; of None, the whole model."""
    split = recipe.split
    ledger = architecture.ledger(recipe.rules.kernels)
    how = {"offloaded": split.offloaded, "lingers": split.lingers}
    if stage is None:
        return treat_all(ledger, split.recompute, split.remade, **how)
    return arrange(ledger, stage.structure, split.remade, **how)


@dataclass(frozen=True, slots=True)
class StepMoment:
    """A moment of the whole step: everything the allocator has given out, term by term."""

    phase: str
    label: str
    terms: tuple[Term, ...]
    allocated: Size
    moving: Size
    """What of it is neither a state nor a gradient."""


@dataclass(frozen=True, slots=True)
class StagePeak:
    """What one pipeline stage holds at its peak.

    `total_bytes` is what the driver counts; `reserved_bytes` and `allocated_bytes` are the allocator's counts, with
    cuBLAS workspaces, and `between_steps_bytes` what is allocated when a step is over. `sizes` evaluate every formula.
    """

    rules: Rules
    segments: tuple[Segment, ...]
    sizes: Mapping[str, int]
    weighed: tuple[tuple[int, StepMoment], ...]
    """Each moment with the bytes that its terms add up to."""
    moment: StepMoment
    outside: tuple[Term, ...]
    outside_bytes: Mapping[str, int]
    """What is held beside those terms, by name."""
    total_bytes: int
    reserved_bytes: int
    allocated_bytes: int
    between_steps_bytes: int

    def components(self) -> tuple[Component, ...]:
        """The terms of the peak, those of no bytes left out."""
        found = (term.at(self.sizes) for term in (*self.moment.terms, *self.outside))
        return tuple(component for component in found if component.bytes)

    def host(self) -> tuple[Component, ...]:
        """What the rank keeps in host memory."""
        found = (term.at(self.sizes) for term in states.host_bytes(self.rules, self.segments))
        return tuple(component for component in found if component.bytes)


def stage_peak(
    rules: Rules,
    segments: tuple[Segment, ...],
    sizes: dict[str, int],
    *,
    outside: tuple[Term, ...],
    gpu: Gpu | None,
) -> StagePeak:
    """The peak of a stage on `gpu` that has `outside` terms beside what the step holds."""
    for name, count in states.counts_on_rank(segments, experts_apart=rules.experts_apart).items():
        sizes[name] = count.evaluate(sizes)
    weighed = tuple((moment.allocated.evaluate(sizes), moment) for moment in step_moments(rules, segments))
    allocated, peak = max(weighed, key=lambda candidate: candidate[0])
    between = _between_steps(rules, segments).evaluate(sizes)
    sizes["allocated_bytes"] = allocated
    outside_bytes = {term.name: term.bytes.evaluate(sizes) for term in outside}
    taken = allocated + sum(outside_bytes.values())
    other = max(_other_phase(rules, weighed, between, sizes), _stranded(rules, segments, weighed, sizes))
    other = other if gpu is None else min(other, max(gpu.usable_bytes - taken, 0))
    sizes[str(overheads.OTHER_PHASE.bytes)] = outside_bytes[overheads.OTHER_PHASE.name] = other
    workspaces = outside_bytes["cublas_workspace"]
    reserved = sum(amount for name, amount in outside_bytes.items() if name in overheads.RESERVED)
    return StagePeak(
        rules=rules,
        segments=segments,
        sizes=sizes,
        weighed=weighed,
        moment=peak,
        outside=(*outside, overheads.OTHER_PHASE),
        outside_bytes=outside_bytes,
        total_bytes=taken + other,
        reserved_bytes=allocated + workspaces + reserved,
        allocated_bytes=allocated + workspaces,
        between_steps_bytes=between + workspaces,
    )


@lru_cache(maxsize=512)
def _between_steps(rules: Rules, segments: tuple[Segment, ...]) -> Size:
    return total(term.bytes for term in states.between_steps(rules, segments))


def _other_phase(
    rules: Rules, weighed: Sequence[tuple[int, StepMoment]], between: int, sizes: Mapping[str, int]
) -> int:
    """Bytes that the allocator keeps for the phase that is not the peak: what forward and backward hold beside
    gradients, and gradients and scratch of the step, find no room in each other's blocks. What nanotron's step leaves
    in the cache is among its temporary terms already.
    """
    if rules.framework == "nanotron":
        return 0
    stepping = max(allocated for allocated, moment in weighed if moment.phase == "optimizer step")
    running = [(allocated, moment) for allocated, moment in weighed if moment.phase != "optimizer step"]
    if not running:
        return 0
    end_of_forward = [moment for _, moment in running if moment.phase == "forward"][-1]
    candidates = (end_of_forward, max(running, key=lambda candidate: candidate[0])[1])
    moving = max(moment.moving.evaluate(sizes) for moment in candidates)
    peak = max(allocated for allocated, _ in weighed)
    return int(max(between + max(stepping - between, 0) + moving - peak, 0))


_LOSSES = ("log_softmax", "in_place_cross_entropy")
"""Operations that keep the logits or what is made of them."""


def _stranded(
    rules: Rules, segments: tuple[Segment, ...], weighed: Sequence[tuple[int, StepMoment]], sizes: Mapping[str, int]
) -> int:
    """Bytes that a shifted loss leaves in the cache while its own backward is the highest the allocator has been: the
    16-bit logits, and one FP32 copy of the shifted ones unless the loss keeps it, too small for the gradients of all
    logits that are made then.
    """
    if rules.kernels.shifted_loss == "never" or not segments:
        return 0
    head = segments[-1]
    kept = [operation.inputs[0] for operation in head.operations if operation.name.endswith(_LOSSES)]
    if not kept:
        return 0
    in_head = [allocated for allocated, moment in weighed if moment.phase == f"backward of the {head.name}"]
    wide = 0 if rules.kernels.in_place_loss else FORMATS["fp32"].bytes
    freed = kept[0].elements * (FORMATS[rules.kernels.compute].bytes + wide)
    return int(max(in_head) + freed.evaluate(sizes) - max(allocated for allocated, _ in weighed))


@lru_cache(maxsize=128)
def step_moments(rules: Rules, segments: tuple[Segment, ...]) -> tuple[StepMoment, ...]:
    """The moments that can be the peak of a step under these rules, as formulas: the sizes come later."""
    kept = states.kept(rules, segments)
    found = []
    for moment in moments(segments):
        phase = "forward" if moment.forward else f"backward of the {moment.segment.name}"
        held = [
            *_activations(moment, rules),
            *states.gradients(rules, moment, segments),
            *in_passing(rules, segments, moment.segment, backward=phase != "forward"),
            Term("gradients_of_activations", "temporary", moment.transient, _transient_source(moment, rules)),
        ]
        found.append((phase, moment.label, (*kept, *held)))
    stepping = (*kept, *states.step(rules, segments), *in_passing(rules, segments, None, backward=False))
    found.append(("optimizer step", "optimizer.step", stepping))
    made = [
        StepMoment(
            phase,
            label,
            terms,
            total(term.bytes for term in terms),
            total(term.bytes for term in terms if term.group in ("activations", "temporary")),
        )
        for phase, label, terms in found
    ]
    return tuple(moment for index, moment in enumerate(made) if not _is_covered(moment, made[index + 1 :]))


def _is_covered(moment: StepMoment, later: list[StepMoment]) -> bool:
    """Whether a later moment of the same phase holds at least as much whatever the sizes are."""
    return any(other.phase == moment.phase and other.allocated.covers(moment.allocated) for other in later)


def _activations(moment: Moment, rules: Rules) -> list[Term]:
    terms = [
        Term(f"activations.{name}", "activations", amount, _activation_source(name, moment.segment, rules))
        for name, amount in moment.saved.items()
    ]
    terms.append(Term("activations.autocast_weights", "activations", moment.weight_casts, AUTOCAST))
    return terms


def _activation_source(component: str, running: Segment, rules: Rules) -> Source:
    if component == "lm_head":
        return FUSED_CROSS_ENTROPY if rules.kernels.fused_cross_entropy else CROSS_ENTROPY
    if running.recompute == "full":
        return CHECKPOINT
    if rules.kernels.fused:
        return MEGATRON_ACTIVATIONS
    if rules.kernels.liger and component in ("norm", "mlp"):
        return LIGER
    return FLASH_ATTENTION if component == "attention" and rules.kernels.attention == "flash" else AUTOGRAD


def _transient_source(moment: Moment, rules: Rules) -> Source:
    if moment.segment.block or rules.kernels.fused_cross_entropy:
        return AUTOGRAD
    return CROSS_ENTROPY
