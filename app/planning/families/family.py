"""What a model family is."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from app.planning.families.fields import Fields
from app.planning.ledger import Tape


@dataclass(frozen=True, slots=True)
class Shapes:
    """A config as its family reads it: `layout` says which parts exist, `sizes` how large they are."""

    layout: Hashable
    sizes: Mapping[str, int]
    longest_sequence: int
    assumptions: tuple[str, ...] = ()


Reader = Callable[[Fields], Shapes]
"""Config fields → shapes, with the class's own defaults. Raises UnsupportedModel at what is wrong or unknown."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models with one forward pass.

    Attributes:
        model_type: as in `config.json`.
        class_name: the `transformers` class whose parameters are counted.
        module_names: what the class calls its modules where the forward pass says otherwise, as pairs of `parent.name`
            or `name` and the real name, `("self_attn.o_proj", "c_proj")`. Adapters find layers by these names.
        other_class_names: what files of the hub call the same class.
        read: config fields → shapes, with the class's own defaults.
        forward: records one forward pass with loss on a tape, for a layout that `read` made.
    """

    model_type: str
    class_name: str
    read: Reader
    forward: Callable[[Tape, Any], None]
    module_names: tuple[tuple[str, str], ...] = ()
    other_class_names: tuple[str, ...] = ()
    family: str = "decoder-only"
    pretraining_objective: str = "causal language modelling"
