"""The peak of one pipeline stage: the largest of all moments of a step.

End of forward, each operation's backward, the optimizer step: each is a sum of terms, as formulas that are made once
for given rules and layers. A stage is priced by evaluating those sums; its terms are spelled out when asked for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from app.planning import deepspeed, megatron, overheads, states
from app.planning.architecture import Architecture
from app.planning.ledger import Segment
from app.planning.passing import in_passing
from app.planning.pipeline import Split, Stage, arrange, treat_all
from app.planning.recipe import Recipe, Rules
from app.planning.sizes import Series, Size, total
from app.planning.sources import (
    AUTOCAST,
    AUTOGRAD,
    CHECKPOINT,
    CROSS_ENTROPY,
    FLASH_ATTENTION,
    FUSED_CROSS_ENTROPY,
    LIGER,
    MEGATRON_ACTIVATIONS,
    PACKING,
)
from app.planning.specs import Gpu
from app.planning.term import Component, Term
from app.planning.timeline import Moment, moments
from app.precision.formats import FORMATS
from app.sources import Source


def segments_of(recipe: Recipe, architecture: Architecture, stage: Stage | None) -> tuple[Segment, ...]:
    """What one pipeline stage runs; of None, the whole model."""
    return _arranged(architecture.ledger(recipe.rules.kernels), recipe.split, stage)


def _arranged(ledger: tuple[Segment, ...], split: Split, stage: Stage | None) -> tuple[Segment, ...]:
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
class Profile:
    """What stages of one structure have in common, however many micro batches wait for their backward."""

    counts: Mapping[str, int]
    between_steps_bytes: int
    stepping_bytes: int
    rises: Sequence[int]
    """How much more each moment of forward and backward holds than the first."""
    highest: int
    """Which of them holds most."""
    moving: int
    """What of the end of forward, or of the highest moment, is neither a state nor a gradient, beyond what the first
    moment holds.
    """
    loss_reserves: int | None
    """What is reserved during the loss's backward beyond what the first moment holds, where blocks are left in the
    cache.
    """


@dataclass(frozen=True, slots=True)
class StageFormulas:
    """What prices a pipeline stage of one structure under given rules, whatever the sizes are."""

    rules: Rules
    segments: tuple[Segment, ...]
    counts: Mapping[str, Size]
    """Parameters of a rank, which the other formulas name."""
    between_steps: Size
    stepping: StepMoment
    running: tuple[StepMoment, ...]
    """The moments of forward and backward; where no layer runs, the optimizer's step stands for them."""
    end_of_forward: int | None
    """Which of them that is; None where no layer runs."""
    first: Size
    """What is allocated at the first of them."""
    rises: Series
    """How much more is at each of them."""
    staying: tuple[Size, ...]
    """States and gradients at each of them."""
    left_by_loss: Size | None
    """Blocks that the loss leaves in the cache while its backward runs; None for none."""
    profile_names: frozenset[str]
    """What a profile is made of: most often all sizes of a stage but the micro batches that wait."""

    @property
    def loss_phase(self) -> str:
        """The phase in which the loss's backward runs."""
        return f"backward of the {self.segments[-1].name}"

    def profile(self, sizes: Mapping[str, int]) -> Profile:
        """The part of the price that stages share whose `profile_names` agree."""
        counts = {name: count.evaluate(sizes) for name, count in self.counts.items()}
        sizes = {**sizes, **counts}
        rises = self.rises.evaluate(sizes)
        highest = rises.index(max(rises))
        end_of_forward = highest if self.end_of_forward is None else self.end_of_forward
        return Profile(
            counts=counts,
            between_steps_bytes=self.between_steps.evaluate(sizes),
            stepping_bytes=self.stepping.allocated.evaluate(sizes),
            rises=rises,
            highest=highest,
            moving=max(rises[index] - self.staying[index].evaluate(sizes) for index in {end_of_forward, highest}),
            loss_reserves=None
            if self.left_by_loss is None
            else self.left_by_loss.evaluate(sizes)
            + max(rise for rise, moment in zip(rises, self.running, strict=True) if moment.phase == self.loss_phase),
        )


@lru_cache(maxsize=128)
def stage_formulas(rules: Rules, segments: tuple[Segment, ...]) -> StageFormulas:
    """The formulas of a stage that runs these segments."""
    *running, stepping = step_moments(rules, segments)
    ends = [index for index, moment in enumerate(running) if moment.phase == "forward"]
    running = running or [stepping]
    counts = counts_on_rank(rules, segments)
    between_steps = bytes_between_steps(rules, segments)
    first = running[0].allocated
    rises = Series(moment.allocated - first for moment in running)
    staying = tuple(moment.allocated - moment.moving for moment in running)
    left_by_loss = _left_by_loss(rules, segments)
    in_profile = (*counts.values(), between_steps, stepping.allocated, *staying, left_by_loss or Size({}))
    return StageFormulas(
        rules=rules,
        segments=segments,
        counts=counts,
        between_steps=between_steps,
        stepping=stepping,
        running=tuple(running),
        end_of_forward=ends[-1] if ends else None,
        first=first,
        rises=rises,
        staying=staying,
        left_by_loss=left_by_loss,
        profile_names=rises.names.union(*(amount.names for amount in in_profile)),
    )


@dataclass(frozen=True, slots=True)
class StagePeak:
    """What one pipeline stage holds at its peak.

    `total_bytes` is what the driver counts; `reserved_bytes` and `allocated_bytes` are the allocator's counts, with
    cuBLAS workspaces, and `between_steps_bytes` what is allocated when a step is over. `sizes` evaluate every formula.
    """

    formulas: StageFormulas
    profile: Profile
    sizes: Mapping[str, int]
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

    def made_in_first_step_bytes(self) -> int:
        """Bytes of the optimizer's states on the GPU, which most optimizers make in the first step."""
        if not states.made_in_first_step(self.formulas.rules):
            return 0
        found = (term for term in self.moment.terms if term.name.partition(".")[0] == "optimizer_states")
        return int(total(term.bytes for term in found).evaluate(self.sizes))

    def host(self) -> tuple[Component, ...]:
        """What the rank keeps in host memory."""
        found = (term.at(self.sizes) for term in states.host_bytes(self.formulas.rules, self.formulas.segments))
        return tuple(component for component in found if component.bytes)

    def weighed(self) -> Iterator[tuple[int, StepMoment]]:
        """Each moment with the bytes that its terms add up to."""
        first = self.formulas.first.evaluate(self.sizes)
        for rise, moment in zip(self.profile.rises, self.formulas.running, strict=True):
            yield first + rise, moment
        yield self.profile.stepping_bytes, self.formulas.stepping


def stage_peaks(
    recipe: Recipe,
    architecture: Architecture,
    pipeline: Iterable[Stage | None],
    common: Mapping[str, int],
    *,
    outside: tuple[Term, ...],
    gpu: Gpu | None,
) -> Iterator[StagePeak]:
    """The peak of each stage on `gpu`, with `outside` terms beside what the step holds; `common` are the sizes that all
    stages share. What does not depend on the sizes in which two stages differ is evaluated once for both.
    """
    ledger = architecture.ledger(recipe.rules.kernels)
    formulas_of: dict[object, StageFormulas] = {}
    profile_of: dict[object, Profile] = {}
    for stage in pipeline:
        structure, own = (None, {}) if stage is None else (stage.structure, stage.sizes)
        if structure not in formulas_of:
            formulas_of[structure] = stage_formulas(recipe.rules, _arranged(ledger, recipe.split, stage))
        formulas = formulas_of[structure]
        sizes = {**common, **own}
        alike = (structure, *(size for name, size in own.items() if name in formulas.profile_names))
        if alike not in profile_of:
            profile_of[alike] = formulas.profile(sizes)
        profile = profile_of[alike]
        yield _stage_peak(formulas, profile, {**sizes, **profile.counts}, outside=outside, gpu=gpu)


def _stage_peak(
    formulas: StageFormulas, profile: Profile, sizes: dict[str, int], *, outside: tuple[Term, ...], gpu: Gpu | None
) -> StagePeak:
    first, stepping = formulas.first.evaluate(sizes), profile.stepping_bytes
    running = first + profile.rises[profile.highest]
    sizes["allocated_bytes"] = allocated = max(running, stepping)
    outside_bytes = {term.name: term.bytes.evaluate(sizes) for term in outside}
    taken = allocated + sum(outside_bytes.values())
    other = 0 if formulas.end_of_forward is None else _other_phase(formulas, profile, first, allocated)
    other = other if gpu is None else min(other, max(gpu.usable_bytes - taken, 0))
    sizes[str(overheads.OTHER_PHASE.bytes)] = outside_bytes[overheads.OTHER_PHASE.name] = other
    workspaces = outside_bytes["cublas_workspace"]
    reserved = sum(amount for name, amount in outside_bytes.items() if name in overheads.RESERVED)
    return StagePeak(
        formulas=formulas,
        profile=profile,
        sizes=sizes,
        moment=formulas.running[profile.highest] if running >= stepping else formulas.stepping,
        outside=(*outside, overheads.OTHER_PHASE),
        outside_bytes=outside_bytes,
        total_bytes=taken + other,
        reserved_bytes=allocated + workspaces + reserved,
        allocated_bytes=allocated + workspaces,
        between_steps_bytes=profile.between_steps_bytes + workspaces,
    )


def counts_on_rank(rules: Rules, segments: tuple[Segment, ...]) -> dict[str, Size]:
    """Formulas for every count that terms name and that is counted once for a stage."""
    return {
        **states.counts_on_rank(segments, experts_apart=rules.experts_apart),
        **deepspeed.counts_on_rank(rules, segments),
        **megatron.counts_on_rank(rules, segments),
    }


def bytes_between_steps(rules: Rules, segments: tuple[Segment, ...]) -> Size:
    """What stays allocated when a step is over."""
    held = states.between_steps(rules, segments)
    held += [*deepspeed.between_steps(rules), *megatron.padding(rules)]
    return total(term.bytes for term in held)


def _other_phase(formulas: StageFormulas, profile: Profile, first: int, allocated: int) -> int:
    """Bytes that the allocator keeps for the phase that is not the peak: what forward and backward hold beside
    gradients, and gradients and scratch of the step, find no room in each other's blocks; nor does the loss's backward
    in all of its own. What nanotron's step leaves in the cache is among its temporary terms already.
    """
    found = [allocated]
    if formulas.rules.framework != "nanotron":
        found.append(max(profile.between_steps_bytes, profile.stepping_bytes) + first + profile.moving)
    if profile.loss_reserves is not None:
        found.append(first + profile.loss_reserves)
    return max(found) - allocated


_LOSSES = ("log_softmax", "in_place_cross_entropy")
"""Operations that keep the logits or what is made of them."""


def _left_by_loss(rules: Rules, segments: tuple[Segment, ...]) -> Size | None:
    """Blocks that a shifted loss leaves in the cache while its own backward runs: the 16-bit logits, and one FP32 copy
    of the shifted ones unless the loss keeps it, too small for the gradients of all logits that are made then.
    """
    if rules.kernels.shifted_loss == "never" or not segments:
        return None
    kept = [operation.inputs[0] for operation in segments[-1].operations if operation.name.endswith(_LOSSES)]
    if not kept:
        return None
    wide = 0 if rules.kernels.in_place_loss else FORMATS["fp32"].bytes
    return kept[0].elements * (FORMATS[rules.kernels.compute].bytes + wide)


def step_moments(rules: Rules, segments: tuple[Segment, ...]) -> tuple[StepMoment, ...]:
    """The moments that can be the peak of a step under these rules, as formulas: the sizes come later."""
    kept = [*states.kept(rules, segments), *megatron.padding(rules)]
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
    if component == "attention" and rules.kernels.packed:
        return PACKING
    return FLASH_ATTENTION if component == "attention" and rules.kernels.attention == "flash" else AUTOGRAD


def _transient_source(moment: Moment, rules: Rules) -> Source:
    if moment.segment.block or rules.kernels.fused_cross_entropy:
        return AUTOGRAD
    return CROSS_ENTROPY
