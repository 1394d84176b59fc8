"""Encoders with BERT's blocks and more beside them: LUKE with entities, RoCBERT with sounds and shapes of words, X-MOD
with an adapter per language.

Source: the modeling files of the same names in transformers.
"""

from dataclasses import dataclass, replace

from app.planning.families.bert import bert_parts
from app.planning.families.decoder import HIDDEN, VOCABULARY, Block, feed_forward_of, self_attention
from app.planning.families.encoder import (
    BERT_MODULES,
    POSITIONS,
    ROBERTA_MODULES,
    EncoderLayout,
    encoder_family,
    masked_head,
    positions_after_padding,
    shapes_of,
    word_embeddings,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.sparse_encoders import SparseLayer
from app.planning.ledger import SEQUENCE, Component, Tape, Tensor, Weight
from app.planning.modules import activation, embedding, idle, idle_linear, norm, position_embedding, type_embedding
from app.planning.sizes import Size, named

LARGEST_LANGUAGE_COUNT = 1000
ENTITIES, ENTITY_WIDTH = named("entity_vocab_size"), named("entity_emb_size")


def read_luke(fields: Fields) -> Shapes:
    """LUKE, trained on words: what it has for entities is counted, and rests."""
    layout, sizes = bert_parts(fields, 50267)
    sizes["entity_vocab_size"] = fields.count("entity_vocab_size", 500_000)
    sizes["entity_emb_size"] = fields.count("entity_emb_size", 256)
    fields.ignore("cls_entity_prediction", "bert_model_name")
    aware = fields.flag("use_entity_aware_attention", default=True)
    layout = replace(
        layout,
        pooler=True,
        embed=LukeEmbeddings(narrow=sizes["entity_emb_size"] != sizes["hidden_size"]),
        layer=SparseLayer(SEQUENCE, entity_queries if aware else None),
        tied=False,
        second_bias=not layout.tied,
        head=LukeHead(layout.tied),
    )
    return shapes_of(layout, sizes, positions_after_padding(fields, sizes))


def entity_queries(tape: Tape) -> None:
    """Queries between words and entities, which rest where there are no entities."""
    for name in ("w2e_query", "e2w_query", "e2e_query"):
        with tape.module(f"self.{name}", "attention"):
            idle_linear(tape, HIDDEN, HIDDEN)


@dataclass(frozen=True, slots=True)
class LukeEmbeddings:
    """BERT's embeddings of words, and the ones of entities."""

    narrow: bool
    """Entities of width `entity_emb_size`, projected to the hidden size."""

    def __call__(self, tape: Tape, layout: EncoderLayout) -> tuple[Tensor, Weight]:
        """Records it on the tape."""
        x, table = word_embeddings(tape, layout)
        tables: tuple[tuple[str, Component, Size], ...] = (
            ("entity_embeddings", "word_embedding", ENTITIES * ENTITY_WIDTH),
            ("position_embeddings", "position_embedding", POSITIONS * HIDDEN),
            ("token_type_embeddings", "type_embedding", named("type_vocab_size") * HIDDEN),
            ("norm", "norm", HIDDEN * 2),
        )
        for name, component, elements in tables:
            with tape.module(f"entity_embeddings.{name}", component):
                idle(tape, tape.weight("weight", elements))
        if self.narrow:
            with tape.module("entity_embeddings.entity_embedding_dense", "mlp"):
                idle_linear(tape, ENTITY_WIDTH, HIDDEN, bias=False)
        return x, table


@dataclass(frozen=True, slots=True)
class LukeHead:
    """The head over words, whose matrix is its own, and the resting head over entities."""

    tied: bool
    """Whether the head over entities is their table."""

    def __call__(self, tape: Tape, layout: EncoderLayout, x: Tensor, table: Weight) -> None:
        """Records it on the tape."""
        with tape.module("entity_predictions.transform.dense", "head_other"):
            idle_linear(tape, HIDDEN, ENTITY_WIDTH)
        with tape.module("entity_predictions.transform.norm", "norm"):
            idle(tape, tape.weight("weight", ENTITY_WIDTH * 2))
        with tape.module("entity_predictions", "head_other"):
            idle(tape, tape.weight("bias", ENTITIES))
        with tape.module("entity_predictions.decoder", "head_other"):
            idle_linear(tape, ENTITY_WIDTH, ENTITIES, bias=False, tied=self.tied)
        masked_head(tape, layout, x, table)


def read_roc_bert(fields: Fields) -> Shapes:
    """RoCBERT: beside each word its sound and its shape, which a dense layer joins with it."""
    layout, sizes = bert_parts(fields, 30522)
    for name, rows, width in (("pronunciation", 910, 768), ("shape", 24858, 512)):
        sizes[f"{name}_vocab_size"] = fields.count(f"{name}_vocab_size", rows)
        sizes[f"{name}_embed_dim"] = fields.count(f"{name}_embed_dim", width)
    joined = fields.flag("concat_input", default=True)
    used = tuple(name for name in ("pronunciation", "shape") if fields.flag(f"enable_{name}", default=True))
    return shapes_of(replace(layout, embed=RocBertEmbeddings(used, joined)), sizes)


@dataclass(frozen=True, slots=True)
class RocBertEmbeddings:
    """Words with their sounds and shapes, then BERT's positions, types and norm."""

    used: tuple[str, ...]
    joined: bool
    """Side by side through a dense layer; else added up."""

    def __call__(self, tape: Tape, layout: EncoderLayout) -> tuple[Tensor, Weight]:
        """Records it on the tape."""
        x, table = embedding(tape, "word_embeddings", VOCABULARY, HIDDEN)
        width = HIDDEN
        for name in ("pronunciation", "shape"):
            size = named(f"{name}_embed_dim")
            with tape.module(f"{name}_embed", "word_embedding"):
                rows = tape.weight("weight", named(f"{name}_vocab_size") * size)
                if name in self.used:
                    x = tape.record("join", (x,), tape.tensor(tape.tokens * (width + size), x.format), weights=(rows,))
                    width = width + size
                else:
                    idle(tape, rows)
        if self.joined:
            with tape.module("map_inputs_layer", "other"):
                x = tape.linear(x, width, HIDDEN, bias=True)
        x = position_embedding(tape, "position_embeddings", POSITIONS, HIDDEN, x)
        for size_name in layout.types:
            x = type_embedding(tape, "token_type_embeddings", named(size_name), HIDDEN, x)
        return tape.dropout(norm(tape, layout.norm, "norm", x, HIDDEN), layout.dropout), table


def read_xmod(fields: Fields) -> Shapes:
    """X-MOD: after each layer an adapter of the text's language; the other languages' rest."""
    layout, sizes = bert_parts(fields, 30522)
    fields.ignore("default_language", "ln_before_adapter", "adapter_reuse_layer_norm")
    reduction = fields.count("adapter_reduction_factor", 2, most=sizes["hidden_size"])
    sizes["adapter_size"] = sizes["hidden_size"] // reduction
    given = fields.get("languages")
    languages = ["en_XX"] if given is None else given
    if (
        not isinstance(languages, list)
        or not 1 <= len(languages) <= LARGEST_LANGUAGE_COUNT
        or not all(isinstance(language, str) for language in languages)
    ):
        raise fields.refuse("languages", f"languages must be a list of 1 to {LARGEST_LANGUAGE_COUNT} names")
    before = fields.flag("pre_norm", default=False)
    layer = AdapterLayer(len(set(languages)), own_norm=fields.flag("adapter_layer_norm", default=False))
    block = replace(layout.blocks[0], placement="pre" if before else "post")
    layout = replace(layout, blocks=(block,), final_norm=before, layer=layer)
    return shapes_of(layout, sizes, positions_after_padding(fields, sizes))


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """BERT's layer with an adapter for each of some languages behind its feed-forward network."""

    languages: int
    own_norm: bool

    def __call__(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        """Records it on the tape."""
        for name, part in (("attention", self_attention), ("feed_forward", self._feed)):
            given = norm(tape, block.norm, f"{name}_norm", x, HIDDEN) if block.placement == "pre" else x
            x = tape.add(x, tape.dropout(part(tape, given, block), block.residual_dropout))
            if block.placement == "post":
                x = norm(tape, block.norm, f"{name}_norm", x, HIDDEN)
        return x

    def _feed(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        out = feed_forward_of(tape, x, block)
        width = named("adapter_size")
        if self.own_norm:
            out = norm(tape, block.norm, "adapter_layer_norm", out, HIDDEN)
        with tape.module("adapter", "mlp"):
            for name, into, into_out in (("dense1", HIDDEN, width), ("dense2", width, HIDDEN)):
                with tape.module(name, "mlp"):
                    for _ in range(self.languages - 1):
                        idle_linear(tape, into, into_out)
            with tape.module("dense1", "mlp"):
                inner = tape.linear(out, HIDDEN, width, bias=True)
            with tape.module("dense2", "mlp"):
                return tape.add(out, tape.linear(activation(tape, "gelu", inner), width, HIDDEN, bias=True))


LUKE = encoder_family("luke", "LukeForMaskedLM", read_luke, ROBERTA_MODULES)
ROC_BERT = encoder_family("roc_bert", "RoCBertForMaskedLM", read_roc_bert, BERT_MODULES)
XMOD = encoder_family("xmod", "XmodForMaskedLM", read_xmod, ROBERTA_MODULES)
