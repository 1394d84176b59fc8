"""Attention whose last layers take keys and values from an earlier layer (Gemma 3n, Gemma 4).

Queries, keys and values have a norm over each head, values one without a weight.
"""

from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN
from app.planning.ledger import Tape, Tensor
from app.planning.modules import Heads, attention, norm, rotary
from app.planning.sizes import Size, named


@dataclass(frozen=True, slots=True)
class SharedKeyAttention:
    """Which parts a layer's attention has. Sizes end with `suffix`, except for the number of query heads."""

    grouped: bool
    bias: bool = False
    shares: bool = False
    """Keys and values are those of an earlier layer."""
    keys_are_values: bool = False
    """Values are the keys before their norm."""
    suffix: str = ""
    dropout: float = 0.0

    def record(self, tape: Tape, x: Tensor) -> Tensor:
        """Writes the attention down."""
        query_heads, size = named("num_attention_heads"), named("head_dim" + self.suffix)
        key_heads = named("num_key_value_heads" + self.suffix) if self.grouped else query_heads
        heads = Heads(query_heads, key_heads, size, size, grouped=self.grouped)
        with tape.module("self_attn", "attention"):
            query = self._project(tape, "q_proj", x, query_heads * size)
            query = rotary(tape, norm(tape, "rms", "q_norm", query, size, tape.tokens * query_heads))
            key, value = self._earlier(tape, heads) if self.shares else self._own(tape, x, heads)
            mixed = attention(tape, query, key, value, heads, dropout=self.dropout, softmax_in_fp32=True)
            with tape.module("o_proj", "attention"):
                return tape.linear(mixed, query_heads * size, HIDDEN, bias=self.bias, split="row")

    def _project(self, tape: Tape, name: str, x: Tensor, width: Size) -> Tensor:
        with tape.module(name, "attention"):
            return tape.linear(x, HIDDEN, width, bias=self.bias, split="column")

    def _own(self, tape: Tape, x: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        width, rows = heads.key_value * heads.size, tape.tokens * heads.key_value
        key = self._project(tape, "k_proj", x, width)
        value = key if self.keys_are_values else self._project(tape, "v_proj", x, width)
        key = rotary(tape, norm(tape, "rms", "k_norm", key, heads.size, rows))
        return key, norm(tape, "rms-no-weight", "v_norm", value, heads.size, rows)

    @staticmethod
    def _earlier(tape: Tape, heads: Heads) -> tuple[Tensor, Tensor]:
        """Counted as kept by each layer that reads them."""
        key, value = (tape.tensor(tape.tokens * heads.key_value * heads.size, tape.compute) for _ in range(2))
        return tape.record("earlier_keys", (), key), tape.record("earlier_values", (), value)
