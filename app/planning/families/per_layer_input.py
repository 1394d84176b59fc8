"""Embeddings of which every layer gets a part of its own, beside the residual stream (Gemma 3n, Gemma 4).

A second table of `num_hidden_layers` times `hidden_size_per_layer_input` columns is looked up, a projection of the word
embeddings is added to it, and each layer gates its part into the stream.
"""

from app.planning.families.decoder import HIDDEN
from app.planning.ledger import Tape, Tensor
from app.planning.modules import Activation, activation, embed, norm
from app.planning.sizes import named

WIDTH = named("hidden_size_per_layer_input")


def embed_per_layer(tape: Tape, x: Tensor) -> None:
    """Makes the parts of all layers from the token ids and the word embeddings."""
    layers = named("num_hidden_layers")
    with tape.module("embed_tokens_per_layer", "word_embedding"):
        rows = named("vocab_size_per_layer_input")
        table = tape.matrix("weight", rows, layers * WIDTH, split="vocabulary")
        looked_up = embed(tape, table, layers * WIDTH)
    with tape.module("per_layer_model_projection", "embedding_projection"):
        projected = tape.linear(x, HIDDEN, layers * WIDTH)
    projected = norm(tape, "rms", "per_layer_projection_norm", tape.scale(projected), WIDTH, tape.tokens * layers)
    tape.scale(tape.add(projected, looked_up))


def gate_per_layer(tape: Tape, x: Tensor, kind: Activation) -> Tensor:
    """What one layer makes of the stream and its part, under a norm."""
    with tape.module("per_layer_input_gate", "embedding_projection"):
        gate = activation(tape, kind, tape.linear(x, HIDDEN, WIDTH))
        part = tape.record("select", (), tape.tensor(tape.tokens * WIDTH, gate.format))
        product = tape.multiply(gate, part)
    with tape.module("per_layer_projection", "embedding_projection"):
        out = tape.linear(product, WIDTH, HIDDEN)
    return norm(tape, "rms", "post_per_layer_input_norm", out, HIDDEN)
