"""State-space models: Mamba, Falcon Mamba and Mamba 2; their mixers, for hybrids with attention as well.

A block is a norm and a mixer: a projection, a short convolution per channel, a selective scan with an input-dependent
step, a gate and a projection back. Mamba's step and state matrices come from two more projections and it has one decay
per channel and state; Mamba 2 takes everything from the first projection and has one decay per head. Source:
transformers modeling_mamba.py, modeling_falcon_mamba.py, modeling_mamba2.py.
"""

from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN, DecoderLayout, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import LARGEST_LAYER_COUNT, Fields
from app.planning.families.hybrid import MixedLayer
from app.planning.ledger import Tape, Tensor
from app.planning.modules import norm
from app.planning.sizes import Size, named

INNER = named("mamba_inner_size")
STATE = named("mamba_state_size")
RANK = named("mamba_step_rank")
KERNEL = named("mamba_conv_kernel")
HEADS = named("mamba_num_heads")
GROUPS = named("mamba_num_groups")

MAMBA_MODULES = (
    ("model", "backbone"),
    ("model.layers", "backbone.layers"),
    ("embed_tokens", "embeddings"),
    ("model.norm", "norm_f"),
    ("mamba", "mixer"),
)


def short_convolution(
    tape: Tape, x: Tensor, channels: Size, kernel: Size, *, bias: bool, name: str = "conv1d"
) -> Tensor:
    """A causal convolution over a few tokens, each channel by itself, with its activation; keeps its input."""
    with tape.module(name, "ssm_or_linear_attention"):
        weights = [tape.weight("weight", channels * kernel, split="column")]
        if bias:
            weights.append(tape.weight("bias", channels, split="column"))
        return tape.record(
            "conv1d",
            (x,),
            tape.tensor(tape.tokens * channels, x.format),
            saves=(x,),
            weights=tuple(weights),
            multiply_adds=tape.tokens * channels * kernel,
        )


@dataclass(frozen=True, slots=True)
class Mamba:
    """Mamba's mixer, as its fused kernel runs it: the scan keeps its inputs, and makes its states again in backward."""

    bias: bool
    convolution_bias: bool
    norms: bool = False
    """Norms of the step and of both state matrices (Jamba)."""
    stacked: bool = False
    """Step and state projections are bare matrices, one for each head (Zamba)."""

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the mixer."""
        with tape.module("mamba", "ssm_or_linear_attention"):
            with tape.module("in_proj", tape.component):
                both = tape.linear(x, HIDDEN, INNER * 2, bias=self.bias, split="column")
            mixed = short_convolution(tape, both, INNER, KERNEL, bias=self.convolution_bias)
            selected, step = self._step(tape, mixed)
            scanned = tape.tensor(tape.tokens * INNER, both.format)
            owned = (tape.weight("A_log", INNER * STATE, split="column"), tape.weight("D", INNER, split="column"))
            tape.record(
                "selective_scan",
                (mixed, selected, step, both),
                scanned,
                saves=(mixed, selected, step, both),
                weights=owned,
                multiply_adds=tape.tokens * INNER * STATE * 3,
            )
            with tape.module("out_proj", tape.component):
                return tape.linear(scanned, INNER, HIDDEN, bias=self.bias, split="row")

    def _step(self, tape: Tape, mixed: Tensor) -> tuple[Tensor, Tensor]:
        if self.stacked:
            selected = _stacked(tape, "x_proj", mixed, INNER * (RANK + STATE * 2), HEADS * (RANK + STATE * 2))
            return selected, _stacked(tape, "dt_proj", selected, RANK * INNER, INNER, bias=True)
        with tape.module("x_proj", tape.component):
            selected = tape.linear(mixed, INNER, RANK + STATE * 2, split="row")
        low = selected
        if self.norms:
            for name, width in (("b_layernorm", STATE), ("c_layernorm", STATE), ("dt_layernorm", RANK)):
                low = tape.record("split", (selected,), tape.tensor(tape.tokens * width, selected.format))
                low = norm(tape, "rms", name, low, width)
        with tape.module("dt_proj", tape.component):
            return selected, tape.linear(low, RANK, INNER, bias=True, split="column")


def _stacked(tape: Tape, name: str, x: Tensor, elements: Size, out: Size, *, bias: bool = False) -> Tensor:
    weights = [tape.weight(f"{name}_weight", elements, split="column")]
    if bias:
        weights.append(tape.weight(f"{name}_bias", out, split="column"))
    output = tape.tensor(tape.tokens * out, x.format)
    return tape.record(name, (x,), output, saves=(x,), weights=tuple(weights), multiply_adds=tape.tokens * elements)


@dataclass(frozen=True, slots=True)
class Mamba2:
    """Mamba 2's mixer: heads with one decay each, groups of state matrices, and a norm behind the gate."""

    bias: bool
    convolution_bias: bool
    output_bias: bool
    gated_norm: bool = True

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the mixer."""
        mixed_width = INNER + GROUPS * STATE * 2
        with tape.module("mamba", "ssm_or_linear_attention"):
            with tape.module("in_proj", tape.component):
                joint = tape.linear(x, HIDDEN, INNER + mixed_width + HEADS, bias=self.bias, split="column")
            mixed = short_convolution(tape, joint, mixed_width, KERNEL, bias=self.convolution_bias)
            names = ("dt_bias", "A_log", "D")
            scanned = tape.record(
                "chunk_scan",
                (mixed, joint),
                tape.tensor(tape.tokens * INNER, joint.format),
                saves=(mixed, joint),
                weights=tuple(tape.weight(name, HEADS, split="column") for name in names),
                multiply_adds=tape.tokens * INNER * STATE * 3,
            )
            gate = tape.record("split", (joint,), tape.tensor(tape.tokens * INNER, joint.format))
            scanned = tape.multiply(scanned, tape.pointwise("silu", gate))
            if self.gated_norm:
                scanned = norm(tape, "rms", "norm", scanned, INNER)
            with tape.module("out_proj", tape.component):
                return tape.linear(scanned, INNER, HIDDEN, bias=self.output_bias, split="row")


def ignore_time_steps(fields: Fields) -> None:
    """How steps are initialized and clamped, and which kernels run: no parameters."""
    for name in ("scale", "min", "max", "init_scheme", "floor", "limit"):
        fields.ignore(f"time_step_{name}")
    fields.ignore("use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep", "chunk_size")


def step_rank(fields: Fields, name: str, hidden: int) -> int:
    """The rank of Mamba's step: a sixteenth of the hidden size, rounded up, unless said otherwise."""
    return -(-hidden // 16) if fields.get(name) in (None, "auto") else fields.count(name, None)


def no_attention(sizes: dict[str, int]) -> dict[str, int]:
    """The sizes of a model without attention, with what others expect of every model."""
    return {**sizes, "num_attention_heads": 1, "num_key_value_heads": 1}


def _mamba_layout(fields: Fields, mixer: Mamba | Mamba2, *, tied: bool) -> DecoderLayout:
    layer = MixedLayer(mixer)
    return DecoderLayout((layer,), tied=fields.flag("tie_word_embeddings", default=tied), rotary=False)


def read_mamba(fields: Fields) -> Shapes:
    """Mamba and Falcon Mamba, whose additional norms have no weights."""
    ignore_time_steps(fields)
    fields.ignore("residual_in_fp32", "fused_add_norm", "rescale_prenorm_residual", "hidden_act", "rms_norm")
    fields.ignore("ssm_cfg", "d_model", "n_layer", "d_inner", "pad_vocab_size_multiple")
    fields.ignore("mixer_rms_eps", "use_falcon_mambapy")
    hidden = fields.count("hidden_size", 768)
    inner = fields.count("expand", 2, most=64) * hidden
    sizes = no_attention(
        {
            "hidden_size": hidden,
            "mamba_inner_size": fields.count("intermediate_size", inner),
            "num_hidden_layers": fields.count("num_hidden_layers", 32, most=LARGEST_LAYER_COUNT),
            "vocab_size": fields.count("vocab_size", 50280),
            "mamba_state_size": fields.count("state_size", 16),
            "mamba_conv_kernel": fields.count("conv_kernel", 4, most=1024),
            "mamba_step_rank": step_rank(fields, "time_step_rank", hidden),
        }
    )
    mixer = Mamba(
        bias=fields.flag("use_bias", default=False), convolution_bias=fields.flag("use_conv_bias", default=True)
    )
    return Shapes(_mamba_layout(fields, mixer, tied=True), sizes, longest_sequence=2**20)


def read_mamba2(fields: Fields) -> Shapes:
    """Mamba 2; Codestral Mamba is one."""
    ignore_time_steps(fields)
    fields.ignore("residual_in_fp32", "rescale_prenorm_residual", "hidden_act", "time_step_rank", "rms_norm")
    fields.ignore("norm_before_gate", "intermediate_size", "ssm_cfg")
    hidden = fields.count("hidden_size", 4096)
    inner = fields.count("expand", 2, most=64) * hidden
    heads, head = fields.count("num_heads", 128), fields.count("head_dim", 64)
    if heads * head != inner:
        raise fields.refuse(
            "num_heads", f"num_heads {heads} times head_dim {head} must be expand times hidden_size, {inner}"
        )
    sizes = no_attention(
        {
            "hidden_size": hidden,
            "mamba_inner_size": inner,
            "num_hidden_layers": fields.count("num_hidden_layers", 64, most=LARGEST_LAYER_COUNT),
            "vocab_size": fields.count("vocab_size", 32768),
            "mamba_state_size": fields.count("state_size", 128),
            "mamba_conv_kernel": fields.count("conv_kernel", 4, most=1024),
            "mamba_num_heads": heads,
            "mamba_num_groups": fields.count("n_groups", 8),
        }
    )
    bias = fields.flag("use_bias", default=False)
    mixer = Mamba2(bias=bias, convolution_bias=fields.flag("use_conv_bias", default=True), output_bias=bias)
    return Shapes(_mamba_layout(fields, mixer, tied=False), sizes, longest_sequence=2**20)


MAMBA = Family("mamba", "MambaForCausalLM", read_mamba, forward, module_names=MAMBA_MODULES)
FALCON_MAMBA = Family("falcon_mamba", "FalconMambaForCausalLM", read_mamba, forward, module_names=MAMBA_MODULES)
MAMBA2 = Family("mamba2", "Mamba2ForCausalLM", read_mamba2, forward, module_names=MAMBA_MODULES)
