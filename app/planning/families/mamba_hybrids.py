"""Decoders with state-space layers beside attention: Jamba, Bamba, Granite 4, Nemotron-H and Falcon H1.

Jamba has Mamba's mixer, the others Mamba 2's. In Falcon H1 mixer and attention read the same norm side by side; in
Nemotron-H a layer is one part alone. Source: the modeling files of the same names in transformers.
"""

from dataclasses import dataclass

from app.planning.families.decoder import Dense, forward
from app.planning.families.expert_layers import attention_of, experts_of, ignore_routing, silu
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import LARGEST_DIMENSION, Fields
from app.planning.families.hybrid import (
    LAYER_TYPES,
    AnyPart,
    MixedLayer,
    listed,
    mixed_decoder,
    named_field,
    read_pattern,
    run_part,
)
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.families.state_space import Mamba, Mamba2, ignore_time_steps, step_rank
from app.planning.ledger import Tape, Tensor
from app.planning.modules import Activation, feed_forward
from app.planning.sizes import named

JAMBA_DEFAULTS = Defaults(65536, 4096, 32, 32, 262144, intermediate_size=14336, num_key_value_heads=8)
BAMBA_DEFAULTS = Defaults(128000, 4096, 32, 32, 262144, intermediate_size=14336, num_key_value_heads=8)
GRANITE_DEFAULTS = Defaults(32000, 4096, 32, 32, 2048, intermediate_size=11008)
NEMOTRON_DEFAULTS = Defaults(131072, 4096, 4, 32, 4096, intermediate_size=21504, num_key_value_heads=8, head_dim=128)
FALCON_H1_DEFAULTS = Defaults(128000, 4096, 32, 32, 8192, intermediate_size=14336, num_key_value_heads=8)

HYBRID_MODULES = (("mlp", "feed_forward"),)
GRANITE_MODULES = (
    ("mlp", "block_sparse_moe"),
    ("shared_expert", "shared_mlp"),
    ("shared_expert.gate_up_proj", "input_linear"),
    ("shared_expert.down_proj", "output_linear"),
)
NEMOTRON_MODULES = (
    ("embed_tokens", "embeddings"),
    ("model.norm", "norm_f"),
    ("mamba", "mixer"),
    ("self_attn", "mixer"),
    ("mlp", "mixer"),
    ("shared_expert", "shared_experts"),
)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two mixers that read the same input; the layer adds both (Falcon H1)."""

    first: AnyPart
    second: AnyPart

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records both and their sum."""
        return tape.add(run_part(tape, x, self.first), run_part(tape, x, self.second))


@dataclass(frozen=True, slots=True)
class SharedMlp:
    """The MLP that every token takes, in a model without routed experts (Granite 4 without MoE)."""

    dense: Dense

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records it under the name it has beside experts."""
        width = named("shared_expert_intermediate_size")
        with tape.module("shared_expert", "shared_experts"):
            return feed_forward(
                tape, x, named("hidden_size"), width, gated=True, kind=self.dense.activation, bias=False, joint=True
            )


def read_jamba(fields: Fields) -> Shapes:
    """Jamba: attention in every eighth layer, experts in every second."""
    sizes = decoder_sizes(fields, JAMBA_DEFAULTS)
    ignore_time_steps(fields)
    experts_of(fields, sizes, count=("num_experts", "num_local_experts"), counts=16, per_token=2, inner=None)
    hidden = sizes["hidden_size"]
    sizes["mamba_inner_size"] = fields.count("mamba_expand", 2, most=64) * hidden
    sizes["mamba_state_size"] = fields.count("mamba_d_state", 16)
    sizes["mamba_conv_kernel"] = fields.count("mamba_d_conv", 4, most=1024)
    sizes["mamba_step_rank"] = step_rank(fields, "mamba_dt_rank", hidden)
    fields.ignore("mamba_inner_layernorms", "calc_logits_for_entire_prompt")
    attention_at, expert_at = _every(fields, "attn_layer", 8, 4), _every(fields, "expert_layer", 2, 1)
    mixer = Mamba(
        bias=fields.flag("mamba_proj_bias", default=False),
        convolution_bias=fields.flag("mamba_conv_bias", default=True),
        norms=True,
    )
    attention = attention_of(fields, sizes)
    experts = MixtureOfExperts(activation=silu(fields))
    has_experts = sizes["num_experts"] > 1

    def kind(layer: int) -> tuple[str, str]:
        sparse = has_experts and layer % expert_at[0] == expert_at[1]
        return (
            "attention" if layer % attention_at[0] == attention_at[1] else "mamba",
            "moe" if sparse else "dense",
        )

    def make(kind: tuple[str, str]) -> MixedLayer:
        mlp = experts if kind[1] == "moe" else Dense(activation=experts.activation)
        return MixedLayer(attention if kind[0] == "attention" else mixer, mlp)

    return mixed_decoder(fields, sizes, map(kind, range(sizes["num_hidden_layers"])), make, rotary=False)


def _every(fields: Fields, name: str, period: int, offset: int) -> tuple[int, int]:
    every = fields.count(f"{name}_period", period)
    first = fields.whole(f"{name}_offset", offset)
    if first >= every:
        raise fields.refuse(f"{name}_offset", f"{name}_offset {first} must be below {name}_period {every}")
    return every, first


def read_bamba(fields: Fields) -> Shapes:
    """Bamba: attention only in the layers that are listed."""
    sizes = decoder_sizes(fields, BAMBA_DEFAULTS)
    mixer = _mamba2(fields, sizes, inner=_expanded(fields, sizes))
    fields.ignore("z_loss_coefficient", "layers_block_type", "attn_rotary_emb", "partial_rotary_factor")
    attended = listed(fields, "attn_layer_indices") or frozenset()
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False))
    dense = Dense(activation=silu(fields), bias=fields.flag("mlp_bias", default=False))
    kinds = (("attention",) if layer in attended else ("mamba",) for layer in range(sizes["num_hidden_layers"]))
    return mixed_decoder(
        fields, sizes, kinds, lambda kind: MixedLayer(attention if kind[0] == "attention" else mixer, dense)
    )


def read_granitemoehybrid(fields: Fields) -> Shapes:
    """Granite 4: Mamba 2 unless a list says otherwise; a shared MLP in each layer, experts where there are any."""
    sizes = decoder_sizes(fields, GRANITE_DEFAULTS)
    mixer = _mamba2(fields, sizes, inner=_expanded(fields, sizes))
    fields.ignore("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
    fields.ignore("position_embedding_type", "normalization_function", "init_method", "num_experts")
    sizes["shared_expert_intermediate_size"] = fields.count("shared_intermediate_size", 1024)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False))
    activation = silu(fields)
    feed: AnyPart = SharedMlp(Dense(activation=activation))
    if fields.whole("num_local_experts", 8, most=100_000):
        experts_of(fields, sizes, count="num_local_experts", counts=8, per_token=2, inner=None)
        feed = MixtureOfExperts(activation=activation, shared=True, joint_shared=True)
    else:
        ignore_routing(fields)
        fields.ignore("num_experts_per_tok")
    name = named_field(fields, ("layer_types", "layers_block_type"))
    kinds = read_pattern(fields, name, sizes["num_hidden_layers"], LAYER_TYPES, lambda _: "linear")

    def make(kind: tuple[str]) -> MixedLayer:
        return MixedLayer(attention if kind[0] == "attention" else mixer, feed)

    return mixed_decoder(fields, sizes, ((kind,) for kind in kinds), make)


def read_falcon_h1(fields: Fields) -> Shapes:
    """Falcon H1: Mamba 2 and attention side by side in every layer, all scaled by multipliers without parameters."""
    sizes = decoder_sizes(fields, FALCON_H1_DEFAULTS)
    expanded = _expanded(fields, sizes)
    inner = expanded if fields.is_null("mamba_d_ssm") else fields.count("mamba_d_ssm", 1024)
    for name in ("lm_head", "embedding", "key", "attention_out", "attention_in", "ssm_in", "ssm_out"):
        fields.ignore(f"{name}_multiplier")
    fields.ignore(
        "mlp_multipliers", "ssm_multipliers", "mamba_norm_before_gate", "mamba_use_mlp", "mlp_expansion_factor"
    )
    fields.ignore("attn_layer_indices", "layers_block_type", "time_step_rank")
    gated_norm = fields.flag("mamba_rms_norm", default=False)
    output_bias = fields.flag("projectors_bias", default=False)
    mixer = _mamba2(fields, sizes, inner=inner, output_bias=output_bias, gated_norm=gated_norm)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False))
    dense = Dense(activation=silu(fields), bias=fields.flag("mlp_bias", default=False))
    layer = MixedLayer(SideBySide(mixer, attention), dense)
    return mixed_decoder(fields, sizes, [("hybrid",)] * sizes["num_hidden_layers"], lambda _: layer)


def read_nemotron_h(fields: Fields) -> Shapes:
    """Nemotron-H and Nemotron 3: a layer is a Mamba 2 mixer, attention, an MLP or experts, as a pattern says."""
    sizes = decoder_sizes(fields, NEMOTRON_DEFAULTS)
    kinds = _nemotron_pattern(fields, sizes)
    sizes["mamba_num_heads"] = fields.count("mamba_num_heads", 128)
    inner = sizes["mamba_num_heads"] * fields.count("mamba_head_dim", 64)
    sizes["mamba_inner_size"] = inner
    sizes["mamba_state_size"] = fields.count("ssm_state_size", 128)
    sizes["mamba_num_groups"] = fields.count(named_field(fields, ("mamba_n_groups", "n_groups")), 8)
    sizes["mamba_conv_kernel"] = fields.count(named_field(fields, ("mamba_d_conv", "conv_kernel")), 4, most=1024)
    convolution_bias = fields.flag(named_field(fields, ("mamba_conv_bias", "use_conv_bias")), default=True)
    bias = fields.flag("use_bias", default=False)
    mixer = Mamba2(bias=bias, convolution_bias=convolution_bias, output_bias=bias)
    ignore_time_steps(fields)
    fields.ignore("time_step_rank")
    for name in ("dt_min", "dt_max", "dt_limit", "dt_init_floor", "chunk_size", "expand", "proj_bias", "hidden_act"):
        fields.ignore(f"mamba_{name}")
    fields.ignore(
        "expand", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap", "mtp_layers_block_type", "attention_bias"
    )
    fields.ignore(
        "mtp_hybrid_override_pattern", "residual_in_fp32", "rescale_prenorm_residual", "norm_eps", "attention_head_dim"
    )
    activation = fields.activation("mlp_hidden_act", default="relu2")
    mlp_bias = fields.flag("mlp_bias", default=False)
    experts = _nemotron_experts(fields, sizes, activation, bias=mlp_bias)
    parts: dict[str, AnyPart] = {
        "mamba": mixer,
        "attention": attention_of(fields, sizes),
        "mlp": Dense(gated=False, activation=activation, bias=mlp_bias),
        "moe": experts,
    }
    dropout = fields.probability("hidden_dropout", default=0.0)
    return mixed_decoder(
        fields,
        sizes,
        ((kind,) for kind in kinds),
        lambda kind: MixedLayer(parts[kind[0]], residual_dropout=dropout),
        tied=None,
        rotary=False,
    )


def _nemotron_pattern(fields: Fields, sizes: dict[str, int]) -> tuple[str, ...]:
    """The kind of each layer; their number is the pattern's length, whatever the file says besides."""
    words = {"linear_attention": "mamba", "mamba": "mamba", "full_attention": "attention", "attention": "attention"}
    words |= {"moe": "moe", "mlp": "mlp", "M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    name = named_field(fields, ("layers_block_type", "layer_types", "hybrid_override_pattern"))
    given = fields.get(name)
    default = ("mamba", "moe", "attention", "mlp")
    length = len(given) if isinstance(given, list | str) else len(default)
    if not 1 <= length <= LARGEST_DIMENSION:
        raise fields.refuse(name, f"{name} must not be empty")
    sizes["num_hidden_layers"] = length
    return read_pattern(fields, name, length, words, lambda layer: default[layer])


def _nemotron_experts(fields: Fields, sizes: dict[str, int], activation: Activation, *, bias: bool) -> MixtureOfExperts:
    experts_of(
        fields,
        sizes,
        count=("n_routed_experts", "num_local_experts"),
        counts=8,
        per_token=2,
        inner=7688,
        inner_name="moe_intermediate_size",
    )
    fields.ignore("n_shared_experts")
    sizes["shared_expert_intermediate_size"] = fields.count("moe_shared_expert_intermediate_size", 7688)
    latent = fields.get("moe_latent_size") is not None
    if latent:
        sizes["moe_latent_size"] = fields.count("moe_latent_size", None)
    return MixtureOfExperts(gated=False, activation=activation, shared=True, shared_bias=bias, latent=latent)


def _expanded(fields: Fields, sizes: dict[str, int]) -> int:
    return fields.count("mamba_expand", 2, most=64) * sizes["hidden_size"]


def _mamba2(
    fields: Fields, sizes: dict[str, int], *, inner: int, output_bias: bool | None = None, gated_norm: bool = True
) -> Mamba2:
    """Reads Mamba 2's sizes as Bamba's config and its descendants name them."""
    ignore_time_steps(fields)
    fields.ignore("mamba_chunk_size")
    sizes["mamba_inner_size"] = inner
    sizes["mamba_num_heads"] = fields.count("mamba_n_heads", 128)
    head = (
        inner // sizes["mamba_num_heads"]
        if fields.get("mamba_d_head") in (None, "auto")
        else fields.count("mamba_d_head", None)
    )
    if head * sizes["mamba_num_heads"] != inner:
        raise fields.refuse("mamba_n_heads", f"mamba_n_heads times mamba_d_head must be the mixer's width, {inner}")
    sizes["mamba_num_groups"] = fields.count("mamba_n_groups", 1)
    sizes["mamba_state_size"] = fields.count("mamba_d_state", 256)
    sizes["mamba_conv_kernel"] = fields.count("mamba_d_conv", 4, most=1024)
    bias = fields.flag("mamba_proj_bias", default=False)
    return Mamba2(
        bias=bias,
        convolution_bias=fields.flag("mamba_conv_bias", default=True),
        output_bias=bias if output_bias is None else output_bias,
        gated_norm=gated_norm,
    )


JAMBA = Family("jamba", "JambaForCausalLM", read_jamba, forward, HYBRID_MODULES)
BAMBA = Family("bamba", "BambaForCausalLM", read_bamba, forward, HYBRID_MODULES)
GRANITEMOEHYBRID = Family(
    "granitemoehybrid", "GraniteMoeHybridForCausalLM", read_granitemoehybrid, forward, GRANITE_MODULES
)
NEMOTRON_H = Family("nemotron_h", "NemotronHForCausalLM", read_nemotron_h, forward, NEMOTRON_MODULES)
FALCON_H1 = Family("falcon_h1", "FalconH1ForCausalLM", read_falcon_h1, forward, HYBRID_MODULES)
