"""Recurrent models that came before or beside state-space models: RecurrentGemma (Griffin), RWKV 4 and xLSTM.

Source: transformers modeling_recurrent_gemma.py, modeling_rwkv.py, modeling_xlstm.py.
"""

from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN, Attention, DecoderLayout, Dense, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import LARGEST_LAYER_COUNT, Fields
from app.planning.families.hybrid import MixedLayer, mixed_decoder, named_field
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.families.state_space import no_attention, short_convolution
from app.planning.ledger import Component, Tape, Tensor
from app.planning.modules import Activation, activation, norm
from app.planning.sizes import Size, named

LARGEST_FACTOR = 64
LINEAR: Component = "ssm_or_linear_attention"

GRIFFIN_DEFAULTS = Defaults(256000, 2560, 26, 10, 8192, 7680)
GRIFFIN_PATTERN = ("recurrent", "recurrent", "attention")
GRIFFIN_MODULES = (("self_attn", "temporal_block"), ("mlp", "mlp_block"), ("model.norm", "final_norm"))
RWKV_MODULES = (
    ("model", "rwkv"),
    ("model.layers", "rwkv.blocks"),
    ("embed_tokens", "embeddings"),
    ("model.norm", "ln_out"),
    ("lm_head", "head"),
)
XLSTM_MODULES = (
    ("model", "backbone"),
    ("model.layers", "backbone.blocks"),
    ("embed_tokens", "embeddings"),
    ("model.norm", "out_norm"),
    ("mlp", "ffn"),
    ("gate_proj", "proj_up_gate"),
    ("up_proj", "proj_up"),
    ("down_proj", "proj_down"),
)


@dataclass(frozen=True, slots=True)
class Griffin:
    """A gated linear recurrent unit behind a short convolution, beside a branch with an activation."""

    activation: Activation

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer. Each head's gates are a square matrix; the recurrence keeps its inputs."""
        width, heads = named("lru_width"), named("num_attention_heads")
        block = named("lru_block_width")
        with tape.module("temporal_block", LINEAR):
            branch = activation(tape, self.activation, _linear(tape, "linear_y", x, HIDDEN, width, bias=True))
            mixed = _linear(tape, "linear_x", x, HIDDEN, width, bias=True)
            mixed = short_convolution(tape, mixed, width, named("conv1d_width"), bias=True, name="conv_1d")
            with tape.module("rg_lru", LINEAR):
                gates = []
                for name in ("input_gate", "recurrent_gate"):
                    weights = (
                        tape.weight(f"{name}_weight", heads * block * block),
                        tape.weight(f"{name}_bias", heads * block),
                    )
                    output = tape.tensor(tape.tokens * width, mixed.format)
                    adds = tape.tokens * width * block
                    gate = tape.record(name, (mixed,), output, saves=(mixed,), weights=weights, multiply_adds=adds)
                    gates.append(tape.pointwise("sigmoid", gate, saves_output=True))
                decay = (tape.weight("recurrent_param", width),)
                output = tape.tensor(tape.tokens * width, mixed.format)
                given = (mixed, *gates)
                mixed = tape.record("recurrence", given, output, saves=(*given, output), weights=decay)
            return _linear(tape, "linear_out", tape.multiply(mixed, branch), width, HIDDEN, bias=True)


@dataclass(frozen=True, slots=True)
class TimeMix:
    """RWKV's attention: keys and values decay with time; each input is mixed with the token before it."""

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer."""
        width = named("attention_hidden_size")
        with tape.module("attention", "attention"):
            made = []
            for name in ("key", "value", "receptance"):
                mixed = _time_mixed(tape, f"time_mix_{name}", x)
                made.append(_linear(tape, name, mixed, HIDDEN, width))
            key, value, gate = made
            owned = (tape.weight("time_decay", width), tape.weight("time_first", width))
            output = tape.tensor(tape.tokens * width, "fp32")
            out = tape.record("wkv", (key, value), output, saves=(key, value, output), weights=owned)
            out = tape.multiply(out, tape.pointwise("sigmoid", gate, saves_output=True))
            return _linear(tape, "output", out, width, HIDDEN)


@dataclass(frozen=True, slots=True)
class ChannelMix:
    """RWKV's feed-forward network, behind a gate."""

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer."""
        inner = named("intermediate_size")
        with tape.module("feed_forward", "mlp"):
            key = _linear(tape, "key", _time_mixed(tape, "time_mix_key", x), HIDDEN, inner)
            value = _linear(tape, "value", activation(tape, "relu2", key), inner, HIDDEN)
            gate = _linear(tape, "receptance", _time_mixed(tape, "time_mix_receptance", x), HIDDEN, HIDDEN)
            return tape.multiply(tape.pointwise("sigmoid", gate, saves_output=True), value)


def _time_mixed(tape: Tape, name: str, x: Tensor) -> Tensor:
    weight = tape.weight(name, HIDDEN)
    return tape.record(name, (x,), tape.tensor(x.elements, x.format), saves=(x,), weights=(weight,))


@dataclass(frozen=True, slots=True)
class MatrixMemory:
    """xLSTM's mLSTM: a matrix of memory per head with exponential gates, as its chunkwise kernel runs it."""

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer."""
        narrow, wide, heads = named("qk_dim"), named("v_dim"), named("num_memory_heads")
        with tape.module("mlstm_layer", LINEAR):
            made = [_linear(tape, name, x, HIDDEN, narrow) for name in ("q", "k")]
            made.append(_linear(tape, "v", x, HIDDEN, wide))
            gate = _linear(tape, "ogate_preact", x, HIDDEN, wide)
            made += [_linear(tape, name, x, HIDDEN, heads, bias=True) for name in ("igate_preact", "fgate_preact")]
            given = tuple(made)
            out = tape.record(
                "mlstm",
                given,
                tape.tensor(tape.tokens * wide, gate.format),
                saves=given,
                multiply_adds=tape.tokens * wide * named("qk_head_dim") * 2,
            )
            out = norm(tape, "layer-no-bias", "multihead_norm", out, wide, tape.tokens * heads)
            out = tape.multiply(out, tape.pointwise("sigmoid", gate, saves_output=True))
            return _linear(tape, "out_proj", out, wide, HIDDEN)


def _linear(tape: Tape, name: str, x: Tensor, into: Size, out: Size, *, bias: bool = False) -> Tensor:
    with tape.module(name, tape.component):
        return tape.linear(x, into, out, bias=bias)


def read_recurrent_gemma(fields: Fields) -> Shapes:
    """RecurrentGemma: two recurrent layers to one with attention, and a gated MLP of half the width in the file."""
    sizes = decoder_sizes(fields, GRIFFIN_DEFAULTS)
    sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    sizes["intermediate_size"] = max(1, sizes["intermediate_size"] // 2)
    sizes["lru_width"] = fields.count("lru_width", sizes["hidden_size"])
    sizes["lru_block_width"] = sizes["lru_width"] // sizes["num_attention_heads"]
    sizes["conv1d_width"] = fields.count("conv1d_width", 4, most=1024)
    fields.ignore("attention_window_size", "logits_soft_cap", "w_init_variance_scale", "partial_rotary_factor")
    fields.ignore("final_w_init_variance_scale", "layers_block_type", "hidden_act", "embeddings_scale_by_sqrt_dim")
    pattern = fields.get("block_types") or list(GRIFFIN_PATTERN)
    if not isinstance(pattern, list) or not all(kind in ("recurrent", "attention") for kind in pattern):
        raise fields.refuse("block_types", "block_types must be a list of 'recurrent' and 'attention'")
    bias = fields.flag("attention_bias", default=False)
    given = fields.activation("hidden_activation", default="gelu_pytorch_tanh")
    attention = Attention(
        sizes["num_key_value_heads"] != sizes["num_attention_heads"],
        bias=bias,
        output_bias=True,
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    dense = Dense(activation=given, bias=True)

    def make(kind: tuple[str]) -> MixedLayer:
        return MixedLayer(attention if kind[0] == "attention" else Griffin(given), dense)

    kinds = ((pattern[layer % len(pattern)],) for layer in range(sizes["num_hidden_layers"]))
    return mixed_decoder(fields, sizes, kinds, make, tied=True)


def read_rwkv(fields: Fields) -> Shapes:
    """RWKV 4: LayerNorm, one more of it behind the embeddings."""
    hidden = fields.count("hidden_size", 4096)
    fields.ignore("rescale_every")
    sizes = no_attention(
        {
            "hidden_size": hidden,
            "attention_hidden_size": fields.count("attention_hidden_size", hidden),
            "intermediate_size": fields.count("intermediate_size", 4 * hidden),
            "num_hidden_layers": fields.count("num_hidden_layers", 32, most=LARGEST_LAYER_COUNT),
            "vocab_size": fields.count("vocab_size", 50277),
        }
    )
    longest = fields.count(named_field(fields, ("context_length", "max_position_embeddings")), 1024, most=2**31)
    layout = DecoderLayout(
        (MixedLayer(TimeMix(), ChannelMix(), norm="layer"),),
        tied=fields.flag("tie_word_embeddings", default=False),
        rotary=False,
        embedding_norm=True,
        norm="layer",
    )
    return Shapes(layout, sizes, longest)


def read_xlstm(fields: Fields) -> Shapes:
    """xLSTM: widths of queries, values and the MLP as factors of the hidden size."""
    hidden = fields.count(named_field(fields, ("hidden_size", "embedding_dim")), 4096)
    layers = fields.count(named_field(fields, ("num_hidden_layers", "num_blocks")), 32, most=LARGEST_LAYER_COUNT)
    heads = fields.count("num_heads", 8)
    fields.must_be("use_bias", False, because="its norms would have biases")
    fields.must_be("weight_mode", "single", because="its matrices would be joined")
    fields.must_be("embedding_dim", hidden, because="the embeddings would have another width")
    fields.must_be("num_blocks", layers, because="it contradicts num_hidden_layers")
    for name in (
        "chunkwise_kernel",
        "sequence_kernel",
        "step_kernel",
        "mode",
        "chunk_size",
        "return_last_states",
        "eps",
    ):
        fields.ignore(name)
    fields.ignore(
        "norm_reduction_force_float32", "norm_eps", "autocast_kernel_dtype", "inference_state_dtype", "add_out_norm"
    )
    fields.ignore(
        "gate_soft_cap", "output_logit_soft_cap", "max_inference_chunksize", "force_bos_token_insert", "add_qk_norm"
    )
    fields.ignore("add_embedding_dropout", "add_post_blocks_norm", "add_post_norm", "cell_norm_eps", "head_dim")
    fields.ignore("igate_bias_init_range", "mlstm_round_up_to_multiple_of")
    narrow, wide = (int(hidden * _factor(fields, name, usual)) for name, usual in (("qk_dim", 0.5), ("v_dim", 1.0)))
    multiple = fields.count("ffn_round_up_to_multiple_of", 64)
    inner = hidden * _factor(fields, "ffn_proj", 2.667)
    sizes = no_attention(
        {
            "hidden_size": hidden,
            "intermediate_size": int((inner + multiple - 1) // multiple * multiple),
            "num_hidden_layers": layers,
            "vocab_size": fields.count("vocab_size", 50304),
            "num_memory_heads": heads,
            "qk_dim": narrow,
            "v_dim": wide,
            "qk_head_dim": narrow // heads,
        }
    )
    if wide % heads:
        raise fields.refuse("num_heads", f"num_heads {heads} does not divide the width of the values, {wide}")
    fields.ignore("tie_word_embeddings")
    layout = DecoderLayout((MixedLayer(MatrixMemory(), Dense()),), tied=False, rotary=False)
    return Shapes(layout, sizes, longest_sequence=2**20)


def _factor(fields: Fields, name: str, usual: float) -> float:
    name = f"{name}_factor"
    value = fields.get(name)
    value = usual if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST_FACTOR:
        raise fields.refuse(name, f"{name} must be a number above 0 and up to {LARGEST_FACTOR}")
    return float(value)


RECURRENT_GEMMA = Family("recurrent_gemma", "RecurrentGemmaForCausalLM", read_recurrent_gemma, forward, GRIFFIN_MODULES)
RWKV = Family("rwkv", "RwkvForCausalLM", read_rwkv, forward, RWKV_MODULES)
XLSTM = Family("xlstm", "xLSTMForCausalLM", read_xlstm, forward, XLSTM_MODULES)
