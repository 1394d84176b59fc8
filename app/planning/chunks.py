"""What each chunk of a pipeline stage keeps: an answer beside the stage's peak, made from the same counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from app.planning.ledger import Segment
from app.planning.pipeline import Stage
from app.planning.sizes import Size, total
from app.planning.timeline import kept_after_forward


@dataclass(frozen=True, slots=True)
class StageChunk:
    """One chunk of layers of a pipeline stage: its number on the stage, its position among all chunks of the model,
    its layers, and the micro batches whose activations wait there for backward where the stage holds most of them.

    `activations_bytes` is what forward keeps of them; copies of weights and tensors that all layers share are the
    stage's.
    """

    chunk: int
    position: int
    layers: int
    in_flight_micro_batches: int
    activations_bytes: int


def chunks_of(stage: Stage | None, segments: tuple[Segment, ...], sizes: Mapping[str, int]) -> tuple[StageChunk, ...]:
    """The chunks of a stage whose `segments` stand for its parts, in the order of the forward pass; none without
    pipeline stages. Layers of one kind that are treated differently are shared out evenly over chunks.
    """
    if stage is None:
        return ()
    kept = [amount.evaluate(sizes) for amount in _kept(segments)]
    bytes_of: dict[int, int] = {}
    layers = set()
    for part, segment, each in zip(stage.parts, segments, kept, strict=True):
        bytes_of[part.segment] = bytes_of.get(part.segment, 0) + each * (part.running + part.waiting)
        if segment.layer:
            layers.add(part.segment)
    passes = {index: sum(chunk.in_flight * chunk.counts.get(index, 0) for chunk in stage.chunks) for index in bytes_of}
    return tuple(
        StageChunk(
            chunk=number,
            position=chunk.position,
            layers=sum(count for index, count in chunk.counts.items() if index in layers),
            in_flight_micro_batches=chunk.in_flight,
            activations_bytes=sum(
                bytes_of[index] * chunk.in_flight * count // passes[index]
                for index, count in chunk.counts.items()
                if count
            ),
        )
        for number, chunk in enumerate(stage.chunks)
    )


@lru_cache(maxsize=512)
def _kept(segments: tuple[Segment, ...]) -> tuple[Size, ...]:
    """Bytes that one repeat of each segment keeps."""
    return tuple(total(kept_after_forward(segment).values()) for segment in segments)
