"""LongCat-Flash: a layer is two attentions and two dense MLPs, with experts that read what the first MLP reads and are
added at the end; some experts do nothing.

Source: transformers modeling_longcat_flash.py. `num_hidden_layers` counts such layers here; the class counts their
halves.
"""

from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN, Attention, DecoderLayout, Dense, forward
from app.planning.families.deepseek import LatentDefaults, latent_attention
from app.planning.families.expert_layers import experts_of, silu
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import LARGEST_EXPERT_COUNT, Fields
from app.planning.families.hybrid import named_field, run_part
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.ledger import Tape, Tensor
from app.planning.modules import norm

DEFAULTS = Defaults(131072, 6144, 28, 64, 131072, 12288, head_dim=64)
LATENT = LatentDefaults(512, 12, 2048)


@dataclass(frozen=True, slots=True)
class LongcatLayer:
    """Two halves of attention and MLP, and experts beside them."""

    attention: Attention
    dense: Dense
    experts: MixtureOfExperts
    repeats: str = "num_hidden_layers"
    suffix: str = ""

    def record(self, tape: Tape, x: Tensor) -> Tensor:
        """One layer."""
        beside: Tensor | None = None
        for _ in range(2):
            given = norm(tape, "rms", "input_layernorm", x, HIDDEN)
            x = tape.add(x, run_part(tape, given, self.attention))
            given = norm(tape, "rms", "post_attention_layernorm", x, HIDDEN)
            if beside is None:
                beside = run_part(tape, given, self.experts)
            x = tape.add(x, run_part(tape, given, self.dense))
        return x if beside is None else tape.add(x, beside)


def read_longcat_flash(fields: Fields) -> Shapes:
    """LongCat-Flash."""
    inner = named_field(fields, ("ffn_hidden_size", "intermediate_size"))
    sizes = decoder_sizes(fields, DEFAULTS, {"num_hidden_layers": "num_layers", "intermediate_size": inner})
    fields.must_be("num_hidden_layers", because="the class counts halves of layers with it; use num_layers")
    experts_of(
        fields,
        sizes,
        count=("n_routed_experts", "num_local_experts"),
        counts=512,
        per_token=12,
        inner=2048,
        inner_name=named_field(fields, ("expert_ffn_hidden_size", "moe_intermediate_size")),
        active_name=("moe_topk", "num_experts_per_tok"),
    )
    idle = fields.whole("zero_expert_num", 256, most=LARGEST_EXPERT_COUNT)
    sizes["num_idle_experts"] = idle
    fields.ignore("zero_expert_type", "mla_scale_q_lora", "mla_scale_kv_lora", "attention_method", "router_dtype")
    experts = MixtureOfExperts(
        activation=silu(fields),
        router_bias=fields.flag("router_bias", default=False),
        router_is_linear=True,
        idle=idle > 0,
    )
    attention = latent_attention(fields, sizes, LATENT, latent_queries=True)
    layer = LongcatLayer(attention, Dense(activation=experts.activation), experts)
    layout = DecoderLayout((layer,), tied=fields.flag("tie_word_embeddings", default=False))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


LONGCAT_FLASH = Family(
    "longcat_flash", "LongcatFlashForCausalLM", read_longcat_flash, forward, (("router", "router.classifier"),)
)
