"""Gemma 4, text: two kinds of attention, embeddings per layer, shared keys and values, experts beside the MLP.

Layers with a window and layers without differ in the size of a head, and perhaps in the number of key/value heads.
Source: transformers modeling_gemma4.py.
"""

from collections import Counter
from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN, VOCABULARY
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import LARGEST_EXPERT_COUNT, Fields
from app.planning.families.per_layer_input import embed_per_layer, gate_per_layer
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.families.shared_keys import SharedKeyAttention
from app.planning.ledger import Tape, Tensor
from app.planning.losses import language_model_head
from app.planning.modules import Activation, Experts, embedding, feed_forward, mixture_of_experts, norm, rotary_table
from app.planning.sizes import named

GEMMA4_DEFAULTS = Defaults(262144, 2304, 30, 8, 131072, intermediate_size=9216, num_key_value_heads=4, head_dim=256)
GEMMA4_MODULES = (("router", "router.proj"),)
GLOBAL = "_global"
KINDS = ("sliding_attention", "full_attention")


@dataclass(frozen=True, slots=True)
class Gemma4Layer:
    """One kind of layer."""

    attention: SharedKeyAttention
    repeats: str
    activation: Activation
    wide: bool = False
    """An MLP of twice the width."""
    per_layer_input: bool = True
    experts: bool = False

    def record(self, tape: Tape, x: Tensor) -> Tensor:
        """Writes one layer down and returns the residual stream after it."""
        out = self.attention.record(tape, norm(tape, "rms", "input_layernorm", x, HIDDEN))
        x = tape.add(x, norm(tape, "rms", "post_attention_layernorm", out, HIDDEN))
        out = self._feed(tape, norm(tape, "rms", "pre_feedforward_layernorm", x, HIDDEN))
        if self.experts:
            out = norm(tape, "rms", "post_feedforward_layernorm_1", out, HIDDEN)
            out = tape.add(out, self._route(tape, x))
        x = tape.add(x, norm(tape, "rms", "post_feedforward_layernorm", out, HIDDEN))
        if self.per_layer_input:
            x = tape.add(x, gate_per_layer(tape, x, self.activation))
        return tape.scale(x)

    def _feed(self, tape: Tape, x: Tensor) -> Tensor:
        inner = named("intermediate_size") * (2 if self.wide else 1)
        with tape.module("mlp", "mlp"):
            return feed_forward(tape, x, HIDDEN, inner, gated=True, kind=self.activation, bias=False)

    def _route(self, tape: Tape, x: Tensor) -> Tensor:
        experts = Experts(named("num_experts"), named("num_experts_per_tok"), named("moe_intermediate_size"))
        given = norm(tape, "rms", "pre_feedforward_layernorm_2", x, HIDDEN)
        with tape.module("router", "router"):
            normed = norm(tape, "rms-no-weight", "norm", x, HIDDEN)
            scales = (tape.weight("scale", HIDDEN), tape.weight("per_expert_scale", experts.count))
            scaled = tape.tensor(normed.elements, normed.format)
            scaled = tape.record("scale", (normed,), scaled, saves=(normed,), weights=scales)
        out = mixture_of_experts(
            tape, scaled, HIDDEN, experts, kind=self.activation, router_is_linear=True, narrow=(given, HIDDEN)
        )
        return norm(tape, "rms", "post_feedforward_layernorm_2", out, HIDDEN)


@dataclass(frozen=True, slots=True)
class Gemma4Layout:
    """Which parts a Gemma 4 model has."""

    layers: tuple[Gemma4Layer, ...]
    tied: bool


def forward(tape: Tape, layout: Gemma4Layout) -> None:
    """One forward pass with loss."""
    with tape.segment("embedding"), tape.module("model", "residual"):
        x, table = embedding(tape, "embed_tokens", VOCABULARY, HIDDEN)
        for suffix in dict.fromkeys(layer.attention.suffix for layer in layout.layers):
            rotary_table(tape, named("head_dim" + suffix))
        if layout.layers[0].per_layer_input:
            embed_per_layer(tape, x)
    for layer in layout.layers:
        with tape.segment("layers", named(layer.repeats)), tape.module("model.layers", "residual"):
            x = layer.record(tape, x)
    with tape.segment("head"):
        with tape.module("model", "residual"):
            x = norm(tape, "rms", "norm", x, HIDDEN)
        language_model_head(tape, x, HIDDEN, VOCABULARY, table if layout.tied else None)


def read_gemma4(fields: Fields) -> Shapes:
    """Gemma 4, text: embeddings per layer unless their width is 0, experts where the config says so."""
    sizes = decoder_sizes(fields, GEMMA4_DEFAULTS)
    experts = fields.flag("enable_moe_block", default=False)
    if experts:
        _experts(fields, sizes)
    fields.ignore("num_experts", "top_k_experts", "moe_intermediate_size")
    per_layer = fields.whole("hidden_size_per_layer_input", 256, most=2**20)
    sizes["hidden_size_per_layer_input"] = per_layer
    sizes["vocab_size_per_layer_input"] = fields.count("vocab_size_per_layer_input", 262144)
    return _layers(fields, sizes, per_layer=bool(per_layer), experts=experts)


def read_gemma4_unified(fields: Fields) -> Shapes:
    """Gemma 4 unified, text: neither embeddings per layer nor experts."""
    sizes = decoder_sizes(fields, GEMMA4_DEFAULTS)
    sizes["max_position_embeddings"] = fields.count("max_position_embeddings", 262144, most=2**31)
    fields.must_be("hidden_size_per_layer_input", 0, because="the class has no embeddings per layer")
    fields.must_be("enable_moe_block", False, because="the class has no experts")
    fields.ignore("vocab_size_per_layer_input", "num_experts", "top_k_experts", "moe_intermediate_size")
    return _layers(fields, sizes, per_layer=False, experts=False)


def _layers(fields: Fields, sizes: dict[str, int], *, per_layer: bool, experts: bool) -> Shapes:
    """How many layers there are of each kind of attention, and how many of them take earlier keys."""
    _global_heads(fields, sizes)
    fields.ignore("final_logit_softcapping", "use_bidirectional_attention", "hidden_act")
    fields.must_be("per_layer_config", because="its layers have sizes of their own")
    bias = fields.flag("attention_bias", default=False)
    dropout = fields.probability("attention_dropout", default=0.0)
    kind = fields.activation("hidden_activation", default="gelu_pytorch_tanh")
    keys_are_values = fields.flag("attention_k_eq_v", default=False)
    double = fields.flag("use_double_wide_mlp", default=False)
    counts = kinds_of_layers(fields, sizes, period=6, shared=0, last_is_full=True)
    layers = []
    for (full, shares), amount in sorted(counts.items()):
        repeats = f"num_{'full' if full else 'sliding'}_layers{'_with_earlier_keys' if shares else ''}"
        sizes[repeats] = amount
        suffix = GLOBAL if full else ""
        attention = SharedKeyAttention(
            sizes["num_key_value_heads" + suffix] != sizes["num_attention_heads"],
            bias=bias,
            shares=shares,
            keys_are_values=keys_are_values and full,
            suffix=suffix,
            dropout=dropout,
        )
        layers.append(Gemma4Layer(attention, repeats, kind, double and shares, per_layer, experts))
    layout = Gemma4Layout(tuple(layers), tied=fields.flag("tie_word_embeddings", default=True))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def kinds_of_layers(
    fields: Fields, sizes: dict[str, int], *, period: int, shared: int, last_is_full: bool
) -> Counter[tuple[bool, bool]]:
    """How many layers there are by whether they see everything and whether they take keys of an earlier layer.

    Without `layer_types` every `period`-th layer sees everything; `shared` is the default of `num_kv_shared_layers`.
    """
    layers = sizes["num_hidden_layers"]
    given = fields.get("layer_types")
    kinds = [KINDS[(layer + 1) % period == 0] for layer in range(layers)] if given is None else given
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in KINDS for kind in kinds):
        raise fields.refuse("layer_types", f"layer_types must list {layers} of {', '.join(KINDS)}")
    full = [kind == "full_attention" for kind in kinds]
    full[-1] = full[-1] or last_is_full
    own = layers - fields.whole("num_kv_shared_layers", shared)
    if own < 1 or set(full[:own]) < set(full):
        raise fields.refuse("num_kv_shared_layers", "each kind of layer needs one with keys of its own first")
    return Counter((is_full, layer >= own) for layer, is_full in enumerate(full))


def _global_heads(fields: Fields, sizes: dict[str, int]) -> None:
    heads, keys = sizes["num_attention_heads"], fields.get("num_global_key_value_heads")
    sizes["head_dim" + GLOBAL] = fields.count("global_head_dim", 512)
    sizes["num_key_value_heads" + GLOBAL] = sizes["num_key_value_heads"]
    if keys is not None and fields.flag("attention_k_eq_v", default=False):
        sizes["num_key_value_heads" + GLOBAL] = fields.count("num_global_key_value_heads", None)
    if heads % sizes["num_key_value_heads" + GLOBAL]:
        raise fields.refuse("num_global_key_value_heads", f"num_global_key_value_heads does not divide {heads} heads")


def _experts(fields: Fields, sizes: dict[str, int]) -> None:
    sizes["num_experts"] = fields.count("num_experts", None, most=LARGEST_EXPERT_COUNT)
    sizes["num_experts_per_tok"] = fields.count("top_k_experts", None, most=sizes["num_experts"])
    sizes["moe_intermediate_size"] = fields.count("moe_intermediate_size", None)


GEMMA4_UNIFIED_TEXT = Family("gemma4_unified_text", "Gemma4UnifiedForCausalLM", read_gemma4_unified, forward)
GEMMA4_TEXT = Family("gemma4_text", "Gemma4ForCausalLM", read_gemma4, forward, module_names=GEMMA4_MODULES)
