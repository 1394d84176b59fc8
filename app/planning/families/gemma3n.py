"""Gemma 3n, text: several residual streams of which each layer works on one (AltUp), a low-rank path beside attention
(LAuReL), embeddings per layer, shared keys and values.

Source: transformers modeling_gemma3n.py.
"""

from collections import Counter
from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN, VOCABULARY
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import LARGEST_DIMENSION, Fields
from app.planning.families.gemma4 import kinds_of_layers
from app.planning.families.per_layer_input import embed_per_layer, gate_per_layer
from app.planning.families.read import Defaults, decoder_sizes, is_grouped
from app.planning.families.shared_keys import SharedKeyAttention
from app.planning.ledger import Tape, Tensor
from app.planning.losses import language_model_head
from app.planning.modules import Activation, embedding, feed_forward, norm, rotary_table
from app.planning.sizes import Size, named

GEMMA3N_DEFAULTS = Defaults(262400, 2048, 35, 8, 32768, intermediate_size=16384, num_key_value_heads=2, head_dim=256)
MOST_STREAMS = 64
MOST_WIDTHS = 64


@dataclass(frozen=True, slots=True)
class Gemma3nLayer:
    """One kind of layer. The width of its MLP ends with `suffix`."""

    attention: SharedKeyAttention
    repeats: str
    suffix: str
    activation: Activation
    streams: int

    def record(self, tape: Tape, x: Tensor) -> Tensor:
        """Writes one layer down; `x` holds all streams."""
        with tape.module("altup", "residual"):
            predicted = self._predict(tape, x)
        active = _select(tape, predicted)
        normed = norm(tape, "rms", "input_layernorm", active, HIDDEN)
        beside = _low_rank_path(tape, normed)
        out = norm(tape, "rms", "post_attention_layernorm", self.attention.record(tape, normed), HIDDEN)
        out = tape.scale(tape.add(tape.add(active, out), beside))
        fed = norm(tape, "rms", "pre_feedforward_layernorm", out, HIDDEN)
        with tape.module("mlp", "mlp"):
            inner = named("intermediate_size" + self.suffix)
            fed = feed_forward(tape, fed, HIDDEN, inner, gated=True, kind=self.activation, bias=False)
        out = tape.add(out, norm(tape, "rms", "post_feedforward_layernorm", fed, HIDDEN))
        with tape.module("altup", "residual"):
            corrected = self._correct(tape, predicted, out)
            first = _select(tape, corrected)
            scale = (tape.weight("correct_output_scale", HIDDEN),)
            scaled = tape.tensor(first.elements, first.format)
            first = tape.record("scale", (first,), scaled, saves=(first,), weights=scale)
        return tape.add(corrected, gate_per_layer(tape, first, self.activation))

    def _route(self, tape: Tape, x: Tensor) -> Tensor:
        normed = tape.scale(norm(tape, "rms", "router_norm", x, HIDDEN))
        with tape.module("modality_router", "residual"):
            return tape.pointwise("tanh", tape.linear(normed, HIDDEN, Size.of(self.streams)), saves_output=True)

    def _predict(self, tape: Tape, x: Tensor) -> Tensor:
        routed = self._route(tape, _select(tape, x))
        with tape.module("prediction_coefs", "residual"):
            coefficients = tape.linear(routed, Size.of(self.streams), Size.of(self.streams**2))
        return tape.add(tape.matmul(x, coefficients, x.elements, x.elements * self.streams), x)

    def _correct(self, tape: Tape, predicted: Tensor, activated: Tensor) -> Tensor:
        with tape.sharing():
            routed = self._route(tape, activated)
        with tape.module("correction_coefs", "residual"):
            coefficients = tape.linear(routed, Size.of(self.streams), Size.of(self.streams))
        change = tape.copy(tape.add(activated, _select(tape, predicted)), predicted.elements)
        return tape.add(tape.multiply(change, coefficients), predicted)


@dataclass(frozen=True, slots=True)
class Gemma3nLayout:
    """Which parts a Gemma 3n model has."""

    layers: tuple[Gemma3nLayer, ...]
    streams: int
    tied: bool


def forward(tape: Tape, layout: Gemma3nLayout) -> None:
    """One forward pass with loss."""
    everything = tape.tokens * HIDDEN * layout.streams
    with tape.segment("embedding"), tape.module("model", "residual"):
        x, table = embedding(tape, "embed_tokens", VOCABULARY, HIDDEN)
        rotary_table(tape, named("head_dim"))
        embed_per_layer(tape, x)
        others = [_projected(tape, f"altup_projections.{index}", x) for index in range(layout.streams - 1)]
        x = tape.record("stack", (x, *others), tape.stream(everything, x.format))
    for layer in layout.layers:
        with tape.segment("layers", named(layer.repeats)), tape.module("model.layers", "residual"):
            x = layer.record(tape, x)
    with tape.segment("head"):
        with tape.module("model", "residual"):
            first = _select(tape, x)
            others = [_projected(tape, f"altup_unembed_projections.{i}", first) for i in range(layout.streams - 1)]
            first = tape.record("mean", (first, *others), tape.stream(first.elements, first.format))
            first = norm(tape, "rms", "norm", first, HIDDEN)
        language_model_head(tape, first, HIDDEN, VOCABULARY, table if layout.tied else None)


def _select(tape: Tape, streams: Tensor) -> Tensor:
    """One stream of several."""
    return tape.record("select", (streams,), tape.stream(tape.tokens * HIDDEN, streams.format))


def _projected(tape: Tape, name: str, x: Tensor) -> Tensor:
    """A projection scaled to the size of what it is made from."""
    with tape.module(name, "residual"):
        made = tape.linear(x, HIDDEN, HIDDEN)
        return tape.pointwise("mul", made)


def _low_rank_path(tape: Tape, x: Tensor) -> Tensor:
    rank = named("laurel_rank")
    with tape.module("laurel", "residual"):
        with tape.module("linear_left", "residual"):
            low = tape.linear(x, HIDDEN, rank)
        with tape.module("linear_right", "residual"):
            out = tape.linear(low, rank, HIDDEN)
        return tape.add(x, norm(tape, "rms", "post_laurel_norm", out, HIDDEN))


def read_gemma3n(fields: Fields) -> Shapes:
    """Gemma 3n, text: the MLP may be of another width in each layer."""
    sizes = decoder_sizes(fields, GEMMA3N_DEFAULTS, {"intermediate_size": "width_of_every_layer"})
    fields.ignore("final_logit_softcapping", "activation_sparsity_pattern", "altup_active_idx", "altup_coef_clip")
    fields.ignore("altup_correct_scale", "hidden_act", "query_pre_attn_scalar", "rope_local_base_freq")
    sizes["hidden_size_per_layer_input"] = fields.count("hidden_size_per_layer_input", 256)
    sizes["vocab_size_per_layer_input"] = fields.count("vocab_size_per_layer_input", 262144)
    sizes["laurel_rank"] = fields.count("laurel_rank", 64)
    streams = fields.count("altup_num_inputs", 4, most=MOST_STREAMS)
    bias = fields.flag("attention_bias", default=False)
    dropout = fields.probability("attention_dropout", default=0.0)
    kind = fields.activation("hidden_activation", default="gelu_pytorch_tanh")
    kinds = kinds_of_layers(fields, sizes, period=5, shared=15, last_is_full=False)
    sharing = sum(amount for (_, shares), amount in kinds.items() if shares)
    layers = []
    for number, ((width, shares), amount) in enumerate(sorted(_widths(fields, sizes, sharing).items())):
        suffix = f"_{number}" if number else ""
        repeats = "num_layers" + suffix
        sizes |= {repeats: amount, "intermediate_size" + suffix: width}
        attention = SharedKeyAttention(is_grouped(sizes), bias=bias, shares=shares, dropout=dropout)
        layers.append(Gemma3nLayer(attention, repeats, suffix, kind, streams))
    layout = Gemma3nLayout(tuple(layers), streams, tied=fields.flag("tie_word_embeddings", default=True))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def _widths(fields: Fields, sizes: dict[str, int], sharing: int) -> Counter[tuple[int, bool]]:
    """How many layers there are by the width of their MLP and whether they take keys of an earlier layer."""
    layers = sizes["num_hidden_layers"]
    given = fields.get("intermediate_size")
    if isinstance(given, list):
        widths = fields.integers("intermediate_size")
        if len(widths) != layers or not all(1 <= width <= LARGEST_DIMENSION for width in widths):
            raise fields.refuse("intermediate_size", f"intermediate_size must list {layers} widths, or be one for all")
    else:
        widths = (fields.count("intermediate_size", GEMMA3N_DEFAULTS.intermediate_size),) * layers
    if len(set(widths)) > MOST_WIDTHS:
        raise fields.refuse("intermediate_size", f"intermediate_size lists more than {MOST_WIDTHS} different widths")
    return Counter((width, layer >= layers - sharing) for layer, width in enumerate(widths))


GEMMA3N_TEXT = Family("gemma3n_text", "Gemma3nForCausalLM", read_gemma3n, forward)
