"""Layers of several kinds in one model: attention beside state-space or linear-attention mixers, dense beside experts.

A kind of layer is a mixer and a feed-forward network, each behind its own norm, or one part alone. Parts that are not
attention, a dense MLP or experts record themselves: they are frozen dataclasses that are called with the tape and their
input. A pattern of layers in any order becomes one `MixedLayer` for each kind, counted by a size.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, TypeVar

from app.planning.families.decoder import (
    HIDDEN,
    Attention,
    Block,
    DecoderLayout,
    Dense,
    Placement,
    arrange,
    feed_forward_of,
    self_attention,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.mixture import MixtureOfExperts
from app.planning.ledger import Tape, Tensor
from app.planning.modules import Norm, norm

LAYER_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "full_attention": "attention",
        "attention": "attention",
        "sliding_attention": "attention",
        "linear_attention": "linear",
        "mamba": "linear",
        "conv": "linear",
        "recurrent": "linear",
    }
)
"""What transformers calls kinds of layers, today and before: those with attention, and those without."""
MLP_TYPES: Mapping[str, str] = MappingProxyType({"dense": "dense", "sparse": "sparse"})

Kind = TypeVar("Kind", bound=tuple[str, ...])


class Part(Protocol):
    """A part of a layer with a forward pass of its own."""

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the part on the tape and returns what it adds to the residual stream."""


AnyPart = Attention | Dense | MixtureOfExperts | Part


@dataclass(frozen=True, slots=True)
class MixedLayer:
    """One kind of layer: a mixer and a feed-forward network, or one part alone behind one norm."""

    mixer: AnyPart
    feed_forward: AnyPart | None = None
    placement: Placement = "pre"
    norm: Norm = "rms"
    residual_dropout: float = 0.0
    suffix: str = ""
    repeats: str = "num_hidden_layers"

    def record(self, tape: Tape, x: Tensor) -> Tensor:
        """One layer of this kind."""

        def run(part: AnyPart) -> Callable[[Tensor], Tensor]:
            return lambda given: tape.dropout(run_part(tape, given, part, self.suffix), self.residual_dropout)

        if self.feed_forward is None:
            return tape.add(x, run(self.mixer)(norm(tape, self.norm, "norm", x, HIDDEN)))
        return arrange(tape, x, run(self.mixer), run(self.feed_forward), self.placement, self.norm)


def run_part(tape: Tape, x: Tensor, part: AnyPart, suffix: str = "") -> Tensor:
    """Records any part; `suffix` belongs to the names of its sizes."""
    if isinstance(part, Attention):
        return self_attention(tape, x, Block(part, Dense(), suffix=suffix))
    if isinstance(part, Dense | MixtureOfExperts):
        return feed_forward_of(tape, x, Block(Attention(grouped=False), part, suffix=suffix))
    return part(tape, x)


def layers_of(
    sizes: dict[str, int], kinds: Iterable[Kind], make: Callable[[Kind], MixedLayer]
) -> tuple[MixedLayer, ...]:
    """One layer for each kind in the pattern; adds to `sizes` how many layers there are of each."""
    layers = []
    for kind, count in Counter(kinds).items():
        name = f"num_{'_'.join(kind)}_layers"
        sizes[name] = count
        layers.append(replace(make(kind), repeats=name))
    return tuple(layers)


def mixed_decoder(
    fields: Fields,
    sizes: dict[str, int],
    kinds: Iterable[Kind],
    make: Callable[[Kind], MixedLayer],
    *,
    tied: bool | None = False,
    tied_name: str | tuple[str, ...] = "tie_word_embeddings",
    rotary: bool = True,
) -> Shapes:
    """A decoder of such layers with an RMSNorm before the head. `tied` None: its class never ties the head."""
    layers = layers_of(sizes, kinds, make)
    is_tied = fields.flag(named_field(fields, tied_name), default=bool(tied))
    layout = DecoderLayout(layers, tied=is_tied and tied is not None, rotary=rotary)
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def dense_or_sparse(
    fields: Fields,
    sizes: dict[str, int],
    kinds: Sequence[str],
    mixers: tuple[AnyPart, AnyPart],
    sparse: Sequence[bool],
    mlps: tuple[AnyPart, AnyPart],
    *,
    tied: bool | None = False,
    tied_name: str | tuple[str, ...] = "tie_word_embeddings",
) -> Shapes:
    """Layers with the first mixer or the second, attention, and with the first MLP where `sparse`, else the second."""

    def make(kind: tuple[str, str]) -> MixedLayer:
        return MixedLayer(mixers[kind[0] == "attention"], mlps[kind[1] == "dense"])

    pairs = zip(kinds, ("moe" if is_sparse else "dense" for is_sparse in sparse), strict=True)
    return mixed_decoder(fields, sizes, pairs, make, tied=tied, tied_name=tied_name)


def read_pattern(
    fields: Fields, name: str, layers: int, known: Mapping[str, str], default: Callable[[int], str]
) -> tuple[str, ...]:
    """The kind of each layer: from the list called `name`, else from the class's own pattern.

    `known` maps the words of the file, or the letters of a string, to kinds. Raises UnsupportedModel where the list has
    another length or other words.
    """
    value = fields.get(name)
    if value is None:
        return tuple(default(index) for index in range(layers))
    if not isinstance(value, list | str) or len(value) != layers:
        raise fields.refuse(name, f"{name} must be a list with one entry for each of the {layers} layers")
    for entry in value:
        if not isinstance(entry, str) or entry not in known:
            raise fields.refuse(name, f"{name} has an entry other than {', '.join(known)}")
    return tuple(known[entry] for entry in value)


def named_field(fields: Fields, names: str | tuple[str, ...]) -> str:
    """The first of several names that the file uses; the first one where it uses none."""
    known = (names,) if isinstance(names, str) else names
    given = [name for name in known if fields.get(name) is not None]
    return given[0] if given else known[0]


def listed(fields: Fields, name: str) -> frozenset[int] | None:
    """A list of layer numbers; None when it is missing."""
    return None if fields.get(name) is None else frozenset(fields.integers(name))
