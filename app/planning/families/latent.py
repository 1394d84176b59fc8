"""Multi-head latent attention (DeepSeek-V2): keys and values, and perhaps queries, come from a narrow latent.

Sizes: `kv_lora_rank`, `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim`, where queries have a latent `q_lora_rank`,
and with an indexer `index_n_heads` and `index_head_dim`.
"""

from app.planning.ledger import Linear, Tape, Tensor
from app.planning.modules import Heads, norm, rotary
from app.planning.sizes import Size, named

HIDDEN = named("hidden_size")
QUERY_RANK = named("q_lora_rank")


def latent_projections(
    tape: Tape, x: Tensor, heads: Heads, *, latent_queries: bool, bias: bool, indexer: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, in the module being recorded."""
    rank, rope = named("kv_lora_rank"), named("qk_rope_head_dim")
    if latent_queries:
        with tape.module("q_a_proj", "attention"):
            low = tape.linear(x, HIDDEN, QUERY_RANK, bias=bias)
        low = norm(tape, "rms", "q_a_layernorm", low, QUERY_RANK)
        if indexer:
            record_indexer(tape, x, low)
        with tape.module("q_b_proj", "attention"):
            query = tape.linear(low, QUERY_RANK, heads.query * heads.size, split="column")
    else:
        with tape.module("q_proj", "attention"):
            query = tape.linear(x, HIDDEN, heads.query * heads.size, split="column")
    with tape.module("kv_a_proj_with_mqa", "attention"):
        both = tape.linear(x, HIDDEN, rank + rope, bias=bias)
    low = tape.record("split", (both,), tape.tensor(tape.rows_of(both) * rank, both.format))
    low = norm(tape, "rms", "kv_a_layernorm", low, rank)
    with tape.module("kv_b_proj", "attention"):
        inner = heads.query * (named("qk_nope_head_dim") + heads.value_size)
        expanded = tape.linear(low, rank, inner, split="column")
    key = tape.record("assemble", (expanded, both), tape.tensor(tape.tokens * heads.query * heads.size, both.format))
    if tape.kernels.fused:
        made = tape.tensor(tape.tokens * heads.query * heads.value_size, both.format)
        value = tape.record("split", (expanded,), made)
    else:
        value = expanded
    return rotary(tape, query), key, value


def record_indexer(tape: Tape, x: Tensor, low: Tensor) -> None:
    """The small attention of DeepSeek-V3.2 that picks which keys a query sees. It runs without autograd: nothing is
    kept, though its weights are parameters like others.
    """
    heads, size = named("index_n_heads"), named("index_head_dim")
    with tape.module("indexer", "attention"):
        for name, given, into, out in (
            ("wq_b", low, QUERY_RANK, heads * size),
            ("wk", x, HIDDEN, size),
            ("weights_proj", x, HIDDEN, heads),
        ):
            _without_gradient(tape, name, given, into, out)
        with tape.module("k_norm", "norm"):
            weights = (tape.weight("weight", size), tape.weight("bias", size))
            tape.record("layer_norm", (), tape.tensor(tape.tokens * size, x.format), weights=weights)
        scores = tape.tokens * tape.sequence * heads
        chosen = tape.tensor(tape.tokens * tape.sequence, "bool", differentiable=False)
        tape.record("index_scores", (), chosen, multiply_adds=scores * size)


def _without_gradient(tape: Tape, name: str, x: Tensor, into: Size, out: Size) -> None:
    with tape.module(name, "attention"):
        weight = tape.matrix("weight", out, into)
        linear = Linear(f"indexer.{name}", into, out)
        output = tape.tensor(tape.tokens * out, x.format, differentiable=False)
        adds = tape.tokens * into * out
        tape.record("linear", (), output, weights=(weight,), multiply_adds=adds, linear=linear)
