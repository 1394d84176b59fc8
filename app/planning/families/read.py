"""Reading the sizes that nearly every decoder has, under whatever names its config gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.planning.families.fields import LARGEST_LAYER_COUNT, Fields


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the class of a family assumes for fields that a file leaves out. None: derived from other sizes."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    intermediate_size: int | None = None
    """None: four times the hidden size."""
    num_key_value_heads: int | None = None
    """None: as many as query heads."""
    head_dim: int | None = None
    """None: the hidden size over the query heads."""


COMMON_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""Names that every config takes, also where its files spell them otherwise."""

GPT2_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }
)
"""Names of common sizes in the configs of GPT-2 and its like."""


def decoder_sizes(
    fields: Fields, defaults: Defaults, names: Mapping[str, str] = MappingProxyType({})
) -> dict[str, int]:
    """The sizes of attention and feed-forward blocks by their common names, checked against each other.

    `names` says how this family's config spells a common name. A key/value or head size that is null is derived, as the
    classes do, whatever stands for one that is missing. Raises UnsupportedModel at the field that is wrong.
    """

    def spelled(name: str) -> str:
        other = names.get(name, name)
        if other == name or name not in COMMON_NAMES or fields.get(name) is None:
            return other
        if fields.get(other) not in (None, fields.get(name)):
            raise fields.refuse(name, f"{name} and {other} are the same size and contradict each other")
        return name

    hidden = fields.count(spelled("hidden_size"), defaults.hidden_size)
    heads = fields.count(spelled("num_attention_heads"), defaults.num_attention_heads)
    key_value_default = None if fields.is_null(spelled("num_key_value_heads")) else defaults.num_key_value_heads
    key_value = fields.count(spelled("num_key_value_heads"), key_value_default or heads)
    head_dim_default = None if fields.is_null(spelled("head_dim")) else defaults.head_dim
    head_dim = fields.get(spelled("head_dim")) or head_dim_default
    if heads % key_value:
        name = spelled("num_key_value_heads")
        raise fields.refuse(name, f"{name} {key_value} does not divide {spelled('num_attention_heads')} {heads}")
    if head_dim is None and hidden % heads:
        name = spelled("num_attention_heads")
        raise fields.refuse(name, f"{name} {heads} does not divide {spelled('hidden_size')} {hidden}")
    return {
        "hidden_size": hidden,
        "intermediate_size": fields.count(spelled("intermediate_size"), defaults.intermediate_size or 4 * hidden),
        "num_hidden_layers": fields.count(
            spelled("num_hidden_layers"), defaults.num_hidden_layers, most=LARGEST_LAYER_COUNT
        ),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value,
        "head_dim": fields.count(spelled("head_dim"), head_dim_default or hidden // heads),
        "vocab_size": fields.count(spelled("vocab_size"), defaults.vocab_size),
        "max_position_embeddings": fields.count(
            spelled("max_position_embeddings"), defaults.max_position_embeddings, most=2**31
        ),
    }


def is_grouped(sizes: Mapping[str, int]) -> bool:
    """Whether query heads share key/value heads."""
    return sizes["num_key_value_heads"] != sizes["num_attention_heads"]


def uniform_heads(fields: Fields, sizes: Mapping[str, int], names: Mapping[str, str] = MappingProxyType({})) -> None:
    """Refuses grouped heads, and heads of a size of their own, in families whose class knows neither."""
    width = sizes["hidden_size"] // sizes["num_attention_heads"]
    for name, only in (("num_key_value_heads", sizes["num_attention_heads"]), ("head_dim", width)):
        fields.must_be(names.get(name, name), only, because="its class has one key and value per query head")
