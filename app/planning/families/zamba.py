"""Zamba and Zamba 2: Mamba layers, and every few layers one transformer block that is the same each time.

The shared block reads the residual stream beside the word embeddings; a matrix of each layer's own brings its result
into the Mamba mixer that follows. Zamba 2 has several shared blocks in turn, and adapters of each layer's own inside
them. Sizes: of the layers that use a block, those that are `owning` hold its weights, and those that are `sharing` use
them again. Source: transformers modeling_zamba.py, modeling_zamba2.py.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN, DecoderLayout, Layer, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.hybrid import MixedLayer, named_field, read_pattern
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.families.state_space import Mamba, Mamba2, ignore_time_steps, step_rank
from app.planning.ledger import Linear, Tape, Tensor
from app.planning.modules import Activation, Heads, activation, attention, norm, rotary
from app.planning.sizes import Size, named

ZAMBA_DEFAULTS = Defaults(32000, 3712, 76, 16, 4096, 14848, 16)
ZAMBA2_DEFAULTS = Defaults(32000, 2560, 54, 32, 4096)
LAYER_KINDS = {"linear_attention": "mamba", "mamba": "mamba", "hybrid": "hybrid"}
ZAMBA2_PATTERN = "M" + "MMMMMH" * 7 + "MMMMH" + "MMMH" + "MM"

MOST_HYBRIDS = 64
SHARED_WIDTH = named("attention_hidden_size")
RANK = named("adapter_rank")
INNER = named("intermediate_size")


@dataclass(frozen=True, slots=True)
class SharedBlock:
    """The shared transformer block."""

    activation: Activation
    dropout: float
    grouped: bool
    rotary: bool = False
    bias: bool = False
    """Biases of the MLP."""
    joint: bool = False
    """One matrix for gate and up (Zamba 2)."""
    attention_adapters: bool = False


@dataclass(frozen=True, slots=True)
class HybridLayer:
    """A use of the shared block, and a Mamba layer that reads its result."""

    shared: SharedBlock
    mixer: Mamba | Mamba2
    owned: bool
    """Whether this layer holds the block's weights. All layers have linear modules for them, tied or not."""
    adapters: int
    """How many adapters hang at each matrix in the class: one for each layer that uses the block. A layer holds and
    uses one of them.
    """
    repeats: str
    suffix: str = ""

    def record(self, tape: Tape, x: Tensor) -> Tensor:
        """One layer."""
        with tape.module("shared_transformer", "residual"):
            both = tape.record("cat", (x,), tape.tensor(tape.tokens * SHARED_WIDTH, x.format))
            out = self._attend(tape, self._norm(tape, "input_layernorm", both, SHARED_WIDTH))
            out = self._feed(tape, self._norm(tape, "pre_ff_layernorm", out, HIDDEN))
        with tape.module("linear", "mlp"):
            out = tape.linear(out, HIDDEN, HIDDEN)
        given = norm(tape, "rms", "input_layernorm", tape.add(x, out), HIDDEN)
        return tape.add(x, self.mixer(tape, given))

    def _attend(self, tape: Tape, x: Tensor) -> Tensor:
        size, shared = named("head_dim"), self.shared
        heads = Heads(named("num_attention_heads"), named("num_key_value_heads"), size, size, shared.grouped)
        with tape.module("self_attn", "attention"):
            made = []
            for name, count in (("q", heads.query), ("k", heads.key_value), ("v", heads.key_value)):
                out = self._linear(tape, f"{name}_proj", x, SHARED_WIDTH, count * size)
                if shared.attention_adapters:
                    out = self._adapted(tape, f"linear_{name}_adapter_list", x, out, SHARED_WIDTH, SHARED_WIDTH)
                made.append(out)
            query, key, value = made
            if shared.rotary:
                query, key = rotary(tape, query), rotary(tape, key)
            mixed = attention(tape, query, key, value, heads, dropout=shared.dropout, softmax_in_fp32=True)
            return self._linear(tape, "o_proj", mixed, heads.query * size, HIDDEN)

    def _feed(self, tape: Tape, x: Tensor) -> Tensor:
        shared = self.shared
        with tape.module("feed_forward", "mlp"):
            if shared.joint:
                both = self._linear(tape, "gate_up_proj", x, HIDDEN, INNER * 2, bias=shared.bias)
                both = self._adapted(tape, "gate_up_proj_adapter_list", x, both, HIDDEN, INNER * 2)
                half = tape.tokens * INNER
                gate, up = (tape.record("split", (both,), tape.tensor(half, both.format)) for _ in range(2))
            else:
                gate = self._linear(tape, "gate_proj", x, HIDDEN, INNER)
                up = self._linear(tape, "up_proj", x, HIDDEN, INNER)
            product = tape.multiply(activation(tape, shared.activation, gate), up)
            return self._linear(tape, "down_proj", product, INNER, HIDDEN, bias=shared.bias)

    def _norm(self, tape: Tape, name: str, x: Tensor, width: Size) -> Tensor:
        with nullcontext() if self.owned else tape.sharing():
            return norm(tape, "rms", name, x, width)

    def _linear(self, tape: Tape, name: str, x: Tensor, into: Size, out: Size, *, bias: bool = False) -> Tensor:
        with tape.module(name, tape.component):
            if self.owned:
                return tape.linear(x, into, out, bias=bias)
            made = tape.linear(x, into, out, tied_to=tape.matrix("weight", out, into))
            if not bias:
                return made
            offset = tape.weight("bias", out)
            return tape.record("bias", (made,), tape.tensor(made.elements, made.format), tied=(offset,), passes=True)

    def _adapted(self, tape: Tape, name: str, x: Tensor, made: Tensor, into: Size, out: Size) -> Tensor:
        """The result of a matrix plus that of this layer's adapter; the other layers' adapters are modules too."""
        with tape.module(name, tape.component):
            for _ in range(self.adapters - 1):
                for place, inputs, outputs in (("0", into, RANK), ("1", RANK, out)):
                    unused = tape.tensor(Size.of(0), x.format, differentiable=False)
                    tape.record("unused", (), unused, linear=Linear(f"{name}.{place}", inputs, outputs))
            with tape.module("0", tape.component):
                low = tape.linear(x, into, RANK)
            with tape.module("1", tape.component):
                return tape.add(made, tape.linear(low, RANK, out))


def read_zamba(fields: Fields) -> Shapes:
    """Zamba: one shared block, at the third layer and every sixth from there on, unless a list says otherwise."""
    sizes = decoder_sizes(
        fields, ZAMBA_DEFAULTS, {"head_dim": "attention_head_dim"} if fields.get("attention_head_dim") else {}
    )
    ignore_time_steps(fields)
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    sizes["attention_hidden_size"] = fields.count("attention_hidden_size", 2 * hidden)
    if fields.get("attention_head_dim") is None:
        sizes["head_dim"] = 2 * hidden // sizes["num_attention_heads"]
    sizes["mamba_inner_size"] = fields.count("mamba_expand", 2, most=64) * hidden
    sizes["mamba_state_size"] = fields.count("mamba_d_state", 16)
    sizes["mamba_conv_kernel"] = fields.count("mamba_d_conv", 4, most=1024)
    sizes["mamba_step_rank"] = step_rank(fields, "mamba_dt_rank", hidden)
    sizes["mamba_num_heads"] = fields.count("n_mamba_heads", 2)
    if sizes["mamba_inner_size"] % sizes["mamba_num_heads"]:
        raise fields.refuse("n_mamba_heads", "n_mamba_heads must divide mamba_expand times hidden_size")
    fields.ignore("hidden_mamba_act")
    every, offset = fields.count("attn_layer_period", 6), fields.whole("attn_layer_offset", 4)
    mixer = Mamba(
        bias=fields.flag("mamba_proj_bias", default=False),
        convolution_bias=fields.flag("mamba_conv_bias", default=True),
        stacked=True,
    )
    shared = SharedBlock(
        fields.activation("hidden_act", default="gelu"),
        fields.probability("attention_dropout", default=0.0),
        grouped=sizes["num_key_value_heads"] != sizes["num_attention_heads"],
    )
    kinds = _pattern(fields, layers, lambda layer: layer == 2 or (layer > 2 and (layer - 3) % every == offset))
    return _shapes(fields, sizes, kinds, shared, mixer, blocks=1)


def read_zamba2(fields: Fields) -> Shapes:
    """Zamba 2."""
    sizes = decoder_sizes(fields, ZAMBA2_DEFAULTS)
    ignore_time_steps(fields)
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    sizes["attention_hidden_size"] = 2 * hidden
    sizes["head_dim"] = 2 * hidden // sizes["num_attention_heads"]
    sizes["adapter_rank"] = fields.count("adapter_rank", 128)
    sizes["mamba_inner_size"] = fields.count("mamba_expand", 2, most=64) * hidden
    sizes["mamba_state_size"] = fields.count("mamba_d_state", 64)
    sizes["mamba_conv_kernel"] = fields.count("mamba_d_conv", 4, most=1024)
    sizes["mamba_num_heads"] = fields.count("n_mamba_heads", 8)
    sizes["mamba_num_groups"] = fields.count("mamba_ngroups", 1)
    fields.ignore(
        "use_conv_bias", "use_mem_eff_path", "use_long_context", "attention_head_dim", "attention_hidden_size"
    )
    fields.ignore("mamba_headdim", "kv_channels", "num_query_groups", "hybrid_layer_ids", "ft_lora", "rope_theta")
    fields.ignore("use_shared_mlp_adapter", "shared_block_type")
    bias = fields.flag("add_bias_linear", default=False)
    shared = SharedBlock(
        fields.activation("hidden_act", default="gelu"),
        fields.probability("attention_dropout", default=0.0),
        grouped=sizes["num_key_value_heads"] != sizes["num_attention_heads"],
        rotary=fields.flag("use_mem_rope", default=False),
        bias=bias,
        joint=True,
        attention_adapters=fields.flag("use_shared_attention_adapter", default=False),
    )
    kinds = _pattern(fields, layers, lambda layer: layer < len(ZAMBA2_PATTERN) and ZAMBA2_PATTERN[layer] == "H")
    mixer = Mamba2(bias=bias, convolution_bias=True, output_bias=bias)
    return _shapes(fields, sizes, kinds, shared, mixer, blocks=fields.count("num_mem_blocks", 1))


def _pattern(fields: Fields, layers: int, is_hybrid: Callable[[int], bool]) -> tuple[str, ...]:
    name = named_field(fields, ("layers_block_type", "layer_types"))
    return read_pattern(fields, name, layers, LAYER_KINDS, lambda layer: "hybrid" if is_hybrid(layer) else "mamba")


def _shapes(
    fields: Fields,
    sizes: dict[str, int],
    kinds: tuple[str, ...],
    shared: SharedBlock,
    mixer: Mamba | Mamba2,
    *,
    blocks: int,
) -> Shapes:
    hybrids = kinds.count("hybrid")
    if hybrids > MOST_HYBRIDS:
        raise fields.refuse("num_hidden_layers", f"more than {MOST_HYBRIDS} hybrid layers are not counted yet")
    tied = fields.flag("tie_word_embeddings", default=True)
    if not tied and shared.joint:
        raise fields.refuse(
            "tie_word_embeddings", "without tying, the class does not share its blocks: not counted yet"
        )
    sizes["num_mamba_layers"] = len(kinds) - hybrids
    layers: list[Layer] = [MixedLayer(mixer, repeats="num_mamba_layers")] if sizes["num_mamba_layers"] else []
    uses = Counter(
        (index < blocks or not tied, len(range(index % blocks, hybrids, blocks))) for index in range(hybrids)
    )
    for (owned, adapters), count in uses.items():
        name = f"num_{'owning' if owned else 'sharing'}_layers_{adapters}"
        sizes[name] = count
        layers.append(HybridLayer(shared, mixer, owned, adapters, name))
    return Shapes(DecoderLayout(tuple(layers), tied, shared.rotary), sizes, sizes["max_position_embeddings"])


ZAMBA = Family("zamba", "ZambaForCausalLM", read_zamba, forward, (("shared_transformer", "shared_transf"),))
ZAMBA2 = Family("zamba2", "Zamba2ForCausalLM", read_zamba2, forward)
