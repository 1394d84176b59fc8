"""Which layers each pipeline stage has, and how many micro batches of them wait for their backward.

A stage runs chunks of layers: one, or `virtual_pipeline_size` of them. What it keeps beside the running micro batch
follows from the schedule: GPipe keeps all micro batches, 1F1B as many as there are stages behind it (Narayanan et al.
2021, section 2.2), the interleaved schedule counts passes of chunks, the zero-bubble schedules trade bubbles for
memory (Qi et al. 2023 and 2024), DualPipe runs two directions on every rank (DeepSeek-V3, section 3.2.1).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from app.planning.ledger import BlockRecompute, Operation, Segment, Weight
from app.planning.sizes import Size, ceil_div_numbers, named
from app.planning.specs import PipelineSchedule, RecomputeModule


@dataclass(frozen=True, slots=True)
class Split:
    """How the layers of a model are spread over ranks."""

    stages: int
    chunks: int
    schedule: PipelineSchedule
    micro_batches: int
    layers_per_stage: tuple[int, ...] | None
    recompute: BlockRecompute
    recompute_layers: int | None
    remade: frozenset[RecomputeModule]
    frozen_layers: int
    offloaded: bool
    lingers: bool

    @property
    def whole(self) -> bool:
        """Whether one rank has all layers, and treats them alike."""
        return self.stages == 1 and self.recompute_layers is None and not self.frozen_layers

    @property
    def mirrored(self) -> bool:
        """Whether a rank's second chunk stands at the other end of the model, as in a V (ZB-V, DualPipe)."""
        return self.schedule in ("zb-v", "v-half", "v-min", "dualpipe", "dualpipe-v")


@dataclass(frozen=True, slots=True)
class Part:
    """Some layers of one kind that a rank treats alike: where they come from in the ledger, and how many there are."""

    segment: int
    recompute: BlockRecompute
    frozen: bool
    held: int
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a stage: its place among all chunks of the model, how often it has each segment of the ledger, and
    the micro batches whose activations it keeps where a stage holds most of them, the running one included.
    """

    position: int
    counts: Mapping[int, int]
    in_flight: int


@dataclass(frozen=True)
class Stage:
    """What one rank of the pipeline has, in the order of the forward pass."""

    index: int
    parts: tuple[Part, ...]
    chunks: tuple[Chunk, ...]

    @cached_property
    def structure(self) -> tuple[tuple[int, BlockRecompute, bool, bool], ...]:
        """What of it decides which formulas hold: the kinds of its parts, and not how many layers they have."""
        return tuple((part.segment, part.recompute, part.frozen, part.waiting > 0) for part in self.parts)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The counts that the formulas of `arrange` name."""
        sizes: dict[str, int] = {}
        for number, part in enumerate(self.parts):
            sizes |= {_held(number): part.held, _running(number): part.running, _waiting(number): part.waiting}
        return sizes


@lru_cache(maxsize=512)
def stages(split: Split, repeats: tuple[int, ...], layers: tuple[bool, ...]) -> tuple[Stage, ...]:
    """Every rank of the pipeline. `repeats` counts each segment of the ledger, `layers` says which are layers that run;
    what stands before the first of them is on the first stage.
    """
    chunks = _chunks(split, repeats, layers)
    first = layers.index(True) if any(layers) else 0
    made = []
    for rank in range(split.stages):
        positions = _positions(split, rank)
        own = [chunks[position] for position in positions]
        waiting = _waiting_passes(split, rank)
        running = _running_chunk(split)
        order = sorted({segment for chunk in own for segment in chunk})
        parts: list[Part] = []
        frozen, again = split.frozen_layers, split.recompute_layers or 0
        for segment in order:
            held = sum(chunk[segment] for chunk in own)
            now = own[running][segment]
            others = sum(count * chunk[segment] for count, chunk in zip(waiting, own, strict=True))
            if segment == len(repeats) - 1 and split.schedule != "gpipe":
                others = 0
            if layers[segment]:
                treated = _treated(split, segment, held, now, others, frozen=frozen, again=again)
                frozen -= sum(part.held for part in treated if part.frozen)
            else:
                below = bool(split.frozen_layers) and segment < first
                treated = [_part(segment, "none", below, held, now, others)] if held else []
            again -= sum(part.held for part in treated if part.recompute == "full")
            parts += treated
        held_chunks = (
            Chunk(position, counts, passes + (number == running))
            for number, (position, counts, passes) in enumerate(zip(positions, own, waiting, strict=True))
        )
        made.append(Stage(rank, tuple(parts), tuple(held_chunks)))
    return tuple(made)


def layers_by_cost(layers: int, layer_cost: int, head_cost: int, stages: int) -> tuple[int, ...]:
    """How nanotron spreads layers: a stage takes layers until the cost of all so far exceeds its share of the whole,
    the head's matrix included (nanotron, `models/base.py`, build_model).
    """
    whole = layers * layer_cost + head_cost
    counts = [0] * stages
    stage = 0
    for layer in range(1, layers + 1):
        counts[stage] += 1
        if layer * layer_cost * stages > whole * (stage + 1) and stage < stages - 1:
            stage += 1
    return tuple(counts)


@lru_cache(maxsize=512)
def arrange(
    segments: tuple[Segment, ...],
    structure: tuple[tuple[int, BlockRecompute, bool, bool], ...],
    remade: frozenset[RecomputeModule],
    *,
    offloaded: bool,
    lingers: bool,
) -> tuple[Segment, ...]:
    """The segments of one stage, whose counts have names of their own: those of `Stage.sizes`.

    A head without the embedding it is tied to owns a copy of it, as Megatron's last stage does.
    """
    made = []
    owned: dict[Weight, bool] = {}
    again = all(how == "full" for index, how, frozen, _ in structure if segments[index].layer and not frozen)
    for number, (index, recompute, frozen, waits) in enumerate(structure):
        segment = segments[index]
        operations = []
        for operation in _without_blocks_saves(segment) if again else segment.operations:
            owned |= dict.fromkeys(operation.weights, frozen)
            missing = tuple(weight for weight in operation.tied if weight not in owned)
            owned |= dict.fromkeys(missing, frozen)
            tied = (weight for weight in operation.tied if weight not in missing)
            operations.append(
                replace(
                    operation,
                    weights=(*operation.weights, *missing),
                    tied=tuple(replace(weight, trainable=False) if owned[weight] else weight for weight in tied),
                )
                if operation.tied
                else operation
            )
        made.append(
            replace(
                segment,
                operations=tuple(operations),
                repeats=named(_running(number)) if segment.block else Size.of(1),
                held=named(_held(number)),
                waiting=named(_waiting(number)) if waits else None,
                recompute=recompute,
                remade=remade,
                frozen=frozen,
                offloaded=offloaded and recompute == "full",
                lingers=lingers and recompute == "full",
            )
        )
    return tuple(made)


@lru_cache(maxsize=512)
def treat_all(
    segments: tuple[Segment, ...],
    recompute: BlockRecompute,
    remade: frozenset[RecomputeModule],
    *,
    offloaded: bool,
    lingers: bool,
) -> tuple[Segment, ...]:
    """The segments of a model that one rank has whole, every layer of it recomputed alike."""
    return tuple(
        replace(
            segment,
            recompute=recompute if segment.block else "none",
            remade=remade,
            operations=_without_blocks_saves(segment) if recompute == "full" else segment.operations,
            offloaded=offloaded and segment.block,
            lingers=lingers and segment.block,
        )
        for segment in segments
    )


def _without_blocks_saves(segment: Segment) -> tuple[Operation, ...]:
    """The operations of a segment, without what those save that really run in the first block."""
    return tuple(replace(one, saves=()) if one.in_block else one for one in segment.operations)


def _held(number: int) -> str:
    return f"layers_held_{number}"


def _running(number: int) -> str:
    return f"layers_running_{number}"


def _waiting(number: int) -> str:
    return f"layers_waiting_{number}"


def _treated(split: Split, segment: int, held: int, now: int, others: int, *, frozen: int, again: int) -> list[Part]:
    """One kind of layers as the parts of it that are frozen, recomputed and kept, where `frozen` and `again` layers of
    the stage are yet to come.
    """
    if not held:
        return []
    frozen = min(frozen, held)
    parts = [Part(segment, "none", True, frozen, frozen, 0)] if frozen else []
    held, now = held - frozen, max(now - frozen, 0)
    if not held:
        return parts
    if split.recompute != "full" or split.recompute_layers is None:
        return [*parts, _part(segment, split.recompute, False, held, now, others)]
    again = min(again, held)
    running_again, waiting_again = min(again, now), others * again // held
    if again:
        parts.append(_part(segment, "full", False, again, running_again, waiting_again))
    if held > again:
        parts.append(_part(segment, "none", False, held - again, now - running_again, others - waiting_again))
    return parts


def _part(
    segment: int,
    recompute: BlockRecompute,
    frozen: bool,
    held: int,
    running: int,
    waiting: int,
) -> Part:
    """Layers that a rank treats alike; where none is in the chunk that runs, one of those that wait stands for it."""
    if not running:
        running, waiting = 1, max(waiting - 1, 0)
    return Part(segment, recompute, frozen, held, running, waiting)


def _chunks(split: Split, repeats: tuple[int, ...], layers: tuple[bool, ...]) -> list[Counter[int]]:
    """For each chunk of the pipeline in the order of the forward pass, how many of each segment it has."""
    total_layers = sum(count for count, layer in zip(repeats, layers, strict=True) if layer)
    count = len(_all_positions(split))
    if split.layers_per_stage is not None:
        sizes = _cut(split.layers_per_stage, split.chunks)
    else:
        share, more = divmod(total_layers, count)
        sizes = [share + (index < more) for index in range(count)]
    made: list[Counter[int]] = [Counter() for _ in sizes]
    chunk, room = 0, sizes[0]
    for segment, (repeat, layer) in enumerate(zip(repeats, layers, strict=True)):
        if not layer:
            between = any(layers[:segment]) and segment < len(repeats) - 1
            while between and not room and chunk < len(sizes) - 1:
                chunk, room = chunk + 1, sizes[chunk + 1]
            made[-1 if segment == len(repeats) - 1 else chunk][segment] += repeat
            continue
        left = repeat
        while left:
            while not room and chunk < len(sizes) - 1:
                chunk, room = chunk + 1, sizes[chunk + 1]
            taken = min(left, room) if room else left
            made[chunk][segment] += taken
            left, room = left - taken, max(room - taken, 0)
    return made


def _cut(layers_per_stage: tuple[int, ...], chunks: int) -> list[int]:
    """The layers of each chunk, in the order of the forward pass: even shares of each stage's. What is left over goes
    to a stage's first chunks; the first stage, whose first chunk has the embedding, gives it to its last.
    """
    shares = []
    for stage, layers in enumerate(layers_per_stage):
        share, more = divmod(layers, chunks)
        own = [share + (chunk < more) for chunk in range(chunks)]
        shares.append(own[::-1] if stage == 0 else own)
    return [own[chunk] for chunk in range(chunks) for own in shares]


def _all_positions(split: Split) -> range:
    if split.schedule == "dualpipe":
        return range(split.stages)
    return range(split.stages * (2 if split.mirrored else split.chunks))


def _positions(split: Split, rank: int) -> list[int]:
    """Which chunks of the pipeline a rank has, in the order of the forward pass."""
    last = len(_all_positions(split)) - 1
    if split.mirrored:
        return sorted([rank, last - rank])
    return [rank + chunk * split.stages for chunk in range(split.chunks)]


def _running_chunk(split: Split) -> int:
    """The chunk of a rank whose backward comes first: its last."""
    return 1 if split.mirrored else split.chunks - 1


def _waiting_passes(split: Split, rank: int) -> list[int]:
    """Passes of each of the rank's chunks that keep activations, beside the one that runs its backward."""
    stages, chunks, many = split.stages, split.chunks, split.micro_batches
    if split.schedule == "gpipe":
        return [many - 1]
    if split.mirrored:
        passes = {
            "zb-v": 2 * stages,
            "v-half": stages + 1,
            "v-min": ceil_div_numbers(2 * stages, 3) + 1,
            "dualpipe": stages + 1,
            "dualpipe-v": 2 * stages + 1,
        }[split.schedule]
        passes = min(passes, 2 * many)
        early = passes - passes // 2
        return [early, max(passes // 2 - 1, 0)]
    if chunks == 1:
        behind = {"zb-h1": stages, "zb-h2": 2 * stages - 1}.get(split.schedule, stages - rank)
        return [min(many, behind) - 1]
    passes = min(many * chunks, 2 * (stages - rank - 1) + (chunks - 1) * stages + 1)
    order = [
        chunk for first in range(0, many, stages) for chunk in range(chunks) for _ in range(min(stages, many - first))
    ]
    counts = Counter(order[:passes])
    return [max(counts[chunk] - (chunk == chunks - 1), 0) for chunk in range(chunks)]


def layer_counts(segments: tuple[Segment, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """How often each segment of a ledger repeats."""
    return tuple(int(segment.repeats.evaluate(sizes)) for segment in segments)
