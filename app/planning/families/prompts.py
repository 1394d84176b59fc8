"""MVP's prompts: keys and values that stand before those of the decoder's attention layers, made from a small table."""

from app.planning.families.decoder import HIDDEN
from app.planning.families.encoder_decoder import DECODER, EncoderDecoderLayout, Side
from app.planning.ledger import Tape, Tensor
from app.planning.modules import activation
from app.planning.sizes import named

LENGTH = named("prompt_length")
MIDDLE = named("prompt_mid_dim")


def prompts(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:  # noqa: ARG001
    """The decoder's prompts, for its attention to itself and to the encoder; the class makes none for the encoder."""
    if side is DECODER:
        for name in ("self_attn_prompt", "cross_attn_prompt"):
            _prompt(tape, side, name)
    return x


def _prompt(tape: Tape, side: Side, name: str) -> None:
    with tape.module(name, "attention"):
        with tape.module("prompt_embedding", "word_embedding"):
            table = tape.weight("weight", LENGTH * HIDDEN)
            made = tape.record("embedding", (), tape.tensor(LENGTH * HIDDEN, tape.parameters), weights=(table,))
        with tape.module("prompt_trans.0", "attention"):
            made = tape.linear(made, HIDDEN, MIDDLE, bias=True, tokens=LENGTH)
        made = activation(tape, "gelu", made)
        with tape.module("prompt_trans.2", "attention"):
            tape.linear(made, MIDDLE, side.size("layers") * HIDDEN * 2, bias=True, tokens=LENGTH)
