"""Reading mixtures of experts: their sizes, and which layers have experts and which a dense MLP.

Sizes: `num_experts`, `num_experts_per_tok`, `moe_intermediate_size`, with shared experts
`shared_expert_intermediate_size`; `num_moe_layers` and `num_dense_layers` where a model has both kinds.
"""

from collections.abc import Sequence

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, Placement
from app.planning.families.family import Shapes
from app.planning.families.fields import LARGEST_EXPERT_COUNT, Fields
from app.planning.families.hybrid import MLP_TYPES, named_field, read_pattern
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import is_grouped
from app.planning.modules import Activation, Norm


def experts_of(
    fields: Fields,
    sizes: dict[str, int],
    *,
    count: str | tuple[str, ...],
    counts: int | None,
    per_token: int | None,
    inner: int | None,
    inner_name: str | None = None,
    active_name: str | tuple[str, ...] = "num_experts_per_tok",
) -> None:
    """Reads the sizes of a mixture of experts: how many, how many a token takes, and the width of one.

    `count`, `counts` are the name (or the names a file may use) and the default of the number of experts; without
    `inner_name` the width is `inner`.
    """
    ignore_routing(fields)
    sizes["num_experts"] = fields.count(named_field(fields, count), counts, most=LARGEST_EXPERT_COUNT)
    chosen = named_field(fields, active_name)
    sizes["num_experts_per_tok"] = fields.count(chosen, per_token, most=LARGEST_EXPERT_COUNT)
    width = inner if inner_name is None else fields.count(inner_name, inner)
    sizes["moe_intermediate_size"] = sizes["intermediate_size"] if width is None else width
    if sizes["num_experts_per_tok"] > sizes["num_experts"]:
        raise fields.refuse(
            chosen, f"{chosen} {sizes['num_experts_per_tok']} exceeds the {sizes['num_experts']} experts"
        )


def ignore_routing(fields: Fields) -> None:
    """How experts are chosen and balanced, next-token-prediction layers that the class leaves out, and how a file
    stores weights: nothing of it is a parameter.
    """
    fields.ignore("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "norm_topk_prob")
    fields.ignore("routed_scaling_factor", "n_group", "topk_group", "topk_method", "scoring_func", "seq_aux")
    fields.ignore("aux_loss_alpha", "num_nextn_predict_layers", "num_mtp_layers", "quantization_config", "auto_map")
    fields.ignore("ep_size", "moe_layer_freq", "partial_rotary_factor")


def shared_width(fields: Fields, sizes: dict[str, int], name: str, default: int | None, *, least: int = 1) -> bool:
    """Reads the number of shared experts, which are one MLP as wide as that many; whether there are any."""
    shared = fields.whole(name, default or 0) if least == 0 else fields.count(name, default, most=LARGEST_EXPERT_COUNT)
    if shared:
        sizes["shared_expert_intermediate_size"] = sizes["moe_intermediate_size"] * shared
    return shared > 0


def attention_of(
    fields: Fields,
    sizes: dict[str, int],
    *,
    bias: bool = False,
    output_bias: bool | None = None,
    head_norms: bool = False,
    full_norms: bool = False,
    sinks: bool = False,
) -> Attention:
    """Grouped-query attention with rotary embedding; the output has a bias as q/k/v do, unless said otherwise."""
    return Attention(
        is_grouped(sizes),
        bias=bias,
        output_bias=bias if output_bias is None else output_bias,
        query_key_norm="head" if head_norms else "full" if full_norms else "none",
        sinks=sinks,
        softmax_in_fp32=not sinks,
        dropout=fields.probability("attention_dropout", default=0.0),
    )


def silu(fields: Fields) -> Activation:
    """The activation of all MLPs, SiLU unless said otherwise."""
    return fields.activation("hidden_act", default="silu")


def sparse_after(sizes: dict[str, int], dense: int) -> tuple[bool, ...]:
    """Experts in all layers but the first `dense` ones."""
    return tuple(layer >= dense for layer in range(sizes["num_hidden_layers"]))


def listed_or_after(fields: Fields, sizes: dict[str, int], dense: int) -> tuple[bool, ...]:
    """Experts where `mlp_layer_types` says so; without it, in all layers but the first ones."""
    layers = sizes["num_hidden_layers"]
    kinds = read_pattern(
        fields, "mlp_layer_types", layers, MLP_TYPES, lambda layer: "sparse" if layer >= dense else "dense"
    )
    return tuple(kind == "sparse" for kind in kinds)


def sparse_steps(fields: Fields, sizes: dict[str, int], dense_only: tuple[int, ...] = ()) -> tuple[bool, ...]:
    """Experts in every `decoder_sparse_step`-th layer that is not in `mlp_only_layers`."""
    step = fields.count("decoder_sparse_step", 1, most=2**31)
    listed = dense_only if fields.get("mlp_only_layers") is None else fields.integers("mlp_only_layers")
    without = frozenset(listed)
    layers = range(sizes["num_hidden_layers"])
    return tuple(layer not in without and (layer + 1) % step == 0 for layer in layers)


def expert_decoder(
    fields: Fields,
    sizes: dict[str, int],
    attention: Attention,
    experts: MixtureOfExperts,
    sparse: Sequence[bool] | None = None,
    *,
    placement: Placement = "pre",
    norm: Norm = "rms",
    dense: Dense | None = None,
    tied: bool = False,
    head_bias: bool = False,
) -> Shapes:
    """A decoder with experts in the layers that are `sparse` (all of them, unless said otherwise), and a dense MLP of
    `intermediate_size` in the others.
    """
    pattern = [True] * sizes["num_hidden_layers"] if sparse is None else sparse
    sizes["num_moe_layers"] = sum(pattern)
    sizes["num_dense_layers"] = sizes["num_hidden_layers"] - sizes["num_moe_layers"]
    plain = dense or Dense(activation=experts.activation)
    blocks = [
        Block(attention, plain, repeats="num_dense_layers", placement=placement, norm=norm),
        Block(attention, experts, repeats="num_moe_layers", placement=placement, norm=norm),
    ]
    layout = DecoderLayout(
        tuple(block for block in blocks if sizes[block.repeats]),
        tied=fields.flag("tie_word_embeddings", default=tied),
        norm=norm,
        head_bias=head_bias,
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])
