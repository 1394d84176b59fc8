"""Differential attention, as DiffLlama has it: two attentions with the same queries and keys, each over one half of the
values, and the difference of the two by halves of the heads, weighed by four learned vectors.
"""

from app.planning.ledger import Tape, Tensor
from app.planning.modules import Heads, attention, norm
from app.planning.sizes import Size, ceil_div


def differential_attention(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, softmax_in_fp32: bool
) -> Tensor:
    """What goes into the output projection: as wide as all heads together."""
    mixed = []
    for _ in range(2):
        half = tape.record("repeat", (value,), tape.tensor(value.elements, value.format))
        mixed.append(attention(tape, query, key, half, heads, dropout=0.0, softmax_in_fp32=softmax_in_fp32))
    first, second = mixed
    vectors = tuple(tape.weight(f"lambda_{name}", heads.size) for name in ("q1", "k1", "q2", "k2"))
    weighed = tape.tensor(second.elements, second.format)
    second = tape.record("lambda", (second,), weighed, saves=(second,), weights=vectors)
    difference = tape.record("sub", (first, second), tape.tensor(first.elements, first.format), passes=True)
    pairs = ceil_div(tape.tokens * heads.query, Size.of(2))
    return tape.scale(norm(tape, "rms-no-weight", "groupnorm", difference, heads.size * 2, pairs))
