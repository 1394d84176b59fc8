"""A text model inside another model: reading its nested config, and running it after the towers beside it.

The text model is read by its own family, under the JSON pointer of its section, and runs under the path that the
wrapper gives it. What a wrapper's class does itself is the head: tied or not by a flag of its own, never with a bias.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from app.planning.families import (
    deepseek,
    experts,
    gemma,
    linear_hybrids,
    llama,
    llama_like,
    olmo,
    opt,
    parallel,
    plain_mlp,
    shared_experts,
)
from app.planning.families.decoder import DecoderLayout
from app.planning.families.decoder import forward as decoder_forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.towers import NO_IMAGES, Stack, record
from app.planning.ledger import Tape
from app.planning.sizes import Size, named

Towers = Callable[[Fields, dict[str, int]], tuple[Stack, ...]]
"""The wrapper's fields and the sizes of its text model → its towers and projectors, with their sizes added."""

TEXT_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for module in (
            llama,
            llama_like,
            gemma,
            olmo,
            opt,
            plain_mlp,
            experts,
            shared_experts,
            deepseek,
            parallel,
            linear_hybrids,
        )
        for family in vars(module).values()
        if isinstance(family, Family) and family.forward is decoder_forward
    }
)
"""Text models that a wrapper of any text model can hold."""


_NEUTRAL_IN_TEXT = (
    "cache_implementation",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "is_composition",
    "num_image_tokens",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "sliding_window_pattern",
    "use_bfloat16",
    "use_embedding_sharing",
    "use_parallel_embedding",
)
"""What files of wrappers say of their text models without changing what those hold."""


@dataclass(frozen=True, slots=True)
class WrapperLayout:
    """The towers and the text model of a wrapper."""

    stacks: tuple[Stack, ...]
    text: Any
    text_forward: Callable[[Tape, Any], None]
    text_names: tuple[tuple[str, str], ...]
    text_path: str


@dataclass(frozen=True, slots=True)
class Wrapper:
    """How a wrapper's class builds its text model."""

    model_type: str
    class_name: str
    towers: Towers
    text: str | Family = "llama"
    """The text family that is meant where `text_config` names none, or a family that only wrappers have."""
    only: bool = False
    """Whether the class takes no other text family, whatever `text_config` calls itself."""
    text_default: Mapping[str, Any] | None = None
    """What the class builds where `text_config` is missing altogether."""
    text_fills: bool = False
    """Whether `text_default` also fills in what `text_config` leaves out."""
    text_names: tuple[tuple[str, str], ...] = ()
    """Other names that files give text families, as pairs of such a name and the family's own."""
    flat: bool = False
    """Whether older files have the text model's fields beside the wrapper's own."""
    tied: bool = False
    """Whether the head is tied where `tie_word_embeddings` is missing."""
    tied_by: Literal["wrapper", "text", "either"] = "wrapper"
    """Whose `tie_word_embeddings` ties the head."""
    text_path: str = "model.language_model"
    own_head: bool = True
    """Whether the wrapper puts a head of its own, without a bias, on the text model."""
    tied_alias: str = "tie_word_embeddings"
    """Another name of that field, which goes first."""
    other_class_names: tuple[str, ...] = ()
    kind: str = "decoder-only"


def family(wrapper: Wrapper) -> Family:
    """The family of a wrapper."""

    def read(fields: Fields) -> Shapes:
        return _read(fields, wrapper)

    return Family(
        wrapper.model_type,
        wrapper.class_name,
        read,
        forward,
        other_class_names=wrapper.other_class_names,
        family=wrapper.kind,
    )


def forward(tape: Tape, layout: WrapperLayout) -> None:
    """The towers, which nothing runs through, then one forward pass of the text model with loss."""
    for stack in layout.stacks:
        record(tape, stack)
    paths = {"model": layout.text_path, "model.layers": f"{layout.text_path}.layers"}
    with tape.naming(paths | dict(layout.text_names)):
        layout.text_forward(tape, layout.text)


def _read(fields: Fields, wrapper: Wrapper) -> Shapes:
    nested = fields
    if not wrapper.flat or fields.get("text_config") is not None:
        nested = fields.section("text_config", wrapper.text_default or {}, fill=wrapper.text_fills)
    text_family = _text_family(nested, wrapper)
    nested.ignore(*_NEUTRAL_IN_TEXT)
    text = text_family.read(nested)
    text_tied: bool = text.layout.tied  # type: ignore[attr-defined]  # all layouts of text models have it
    own_tied = fields.flag("tie_word_embeddings", default=wrapper.tied)
    own_tied = fields.flag(wrapper.tied_alias, default=own_tied)
    tied = {"wrapper": own_tied, "text": text_tied, "either": own_tied or text_tied}[wrapper.tied_by]
    sizes = dict(text.sizes)
    stacks = wrapper.towers(fields, sizes)
    layout = replace(text.layout, tied=tied)  # type: ignore[type-var]  # layouts are dataclasses
    if wrapper.own_head and isinstance(layout, DecoderLayout):
        layout = replace(layout, head_bias=False)
    return Shapes(
        WrapperLayout(stacks, layout, text_family.forward, text_family.module_names, wrapper.text_path),
        sizes,
        text.longest_sequence,
        (*text.assumptions, NO_IMAGES),
    )


def _text_family(nested: Fields, wrapper: Wrapper) -> Family:
    if isinstance(wrapper.text, Family):
        return wrapper.text
    if wrapper.only:
        return TEXT_FAMILIES[wrapper.text]
    known = {name: name for name in TEXT_FAMILIES} | dict(wrapper.text_names)
    return TEXT_FAMILIES[known[nested.one_of("model_type", tuple(known), default=wrapper.text)]]


def feature_layers(fields: Fields, sizes: dict[str, int], *, default: int) -> Size:
    """How many layers' features the projector takes side by side: one, or as many as `vision_feature_layer` lists."""
    value = fields.get("vision_feature_layer")
    count = default if value is None else 1 if isinstance(value, int) else len(fields.integers("vision_feature_layer"))
    if not 1 <= count <= 1000:
        raise fields.refuse("vision_feature_layer", "vision_feature_layer must name from 1 to 1,000 layers")
    sizes["num_feature_layers"] = count
    return named("num_feature_layers")
