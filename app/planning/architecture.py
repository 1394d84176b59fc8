"""A `config.json` → exact shapes and parameter counts, without torch, transformers or a network."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isqrt
from typing import Any, Literal

from app.errors import InvalidInput, UnknownName, UnsupportedModel
from app.planning.families import FAMILIES
from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.ledger import Component, Kernels, Segment, Weight
from app.planning.sizes import Size, total
from app.planning.timeline import record

_COUNTING = Kernels(parameters="fp32", compute="fp32", attention="eager", fused=False, fused_cross_entropy=False)
"""Any kernels count parameters alike; these are one choice."""

_INFERRED = DecoderLayout((Block(Attention(grouped=False), Dense()),), tied=False, remainder=True)
"""A Llama-like decoder, and parameters that belong to no layer."""

_EMBEDDINGS: tuple[Component, ...] = ("word_embedding", "position_embedding", "type_embedding")


@dataclass(frozen=True)
class Architecture:
    """A model as the planner knows it: its family, which parts it has, and every size by name."""

    name: str
    family: Family
    shapes: Shapes
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def sizes(self) -> Mapping[str, int]:
        """Values of the names that formulas use: `hidden_size`, `num_hidden_layers`, ..."""
        return self.shapes.sizes

    def ledger(self, kernels: Kernels = _COUNTING) -> tuple[Segment, ...]:
        """The operations of its forward pass, as these kernels run them."""
        return record(self.family.model_type, self.shapes.layout, kernels)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the model class, tied weights counted once."""
        return sum(count.parameters for count in self.components)

    @cached_property
    def components(self) -> tuple["ComponentCount", ...]:
        """Parameters by component, in the order of the forward pass; they sum to `parameters`."""
        return tuple(
            ComponentCount(
                held.component,
                held.tensors.evaluate(self.sizes),
                held.elements.evaluate(self.sizes),
                str(held.elements),
            )
            for held in _held(self.family.model_type, self.shapes.layout)
        )

    @cached_property
    def linear_layers(self) -> tuple["LinearLayers", ...]:
        """All linear layers, under the names the real class gives them: what a low-rank adapter can be put beside."""
        return tuple(
            LinearLayers(
                operation.linear.name,
                segment.repeats.evaluate(self.sizes),
                operation.linear.inputs.evaluate(self.sizes),
                operation.linear.outputs.evaluate(self.sizes),
                kind="output" if operation.component == "lm_head" else operation.linear.kind,
                copies=operation.linear.copies.evaluate(self.sizes),
            )
            for segment in self.ledger()
            for operation in segment.operations
            if operation.linear is not None
        )

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: routed experts count by how many of them a token takes."""
        routed = sum(count.parameters for count in self.components if count.name == "routed_experts")
        if not routed:
            return self.parameters
        return self.parameters - routed + routed * self.sizes["num_experts_per_tok"] // self.sizes["num_experts"]

    @cached_property
    def trainable_parameters(self) -> int:
        """Parameters that get a gradient in full training: all but fixed tables of positions."""
        held = _held(self.family.model_type, self.shapes.layout)
        return self.parameters - sum(int(part.frozen.evaluate(self.sizes)) for part in held)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of word and position embeddings, which no matrix product reads."""
        return sum(count.parameters for count in self.components if count.name in _EMBEDDINGS)


@dataclass(frozen=True, slots=True)
class _Held:
    """What a component of a layout holds, whatever its sizes: how many tensors, their elements, the frozen ones."""

    component: Component
    tensors: Size
    elements: Size
    frozen: Size


@lru_cache(maxsize=1024)
def _held(model_type: str, layout: Hashable) -> tuple[_Held, ...]:
    weights: dict[Component, list[tuple[Size, Weight]]] = {}
    for segment in record(model_type, layout, _COUNTING):
        for weight in segment.weights:
            weights.setdefault(weight.component, []).append((segment.repeats, weight))
    return tuple(
        _Held(
            component,
            total(repeats for repeats, _ in found),
            total(repeats * weight.elements for repeats, weight in found),
            total(repeats * weight.elements for repeats, weight in found if not weight.trainable),
        )
        for component, found in weights.items()
    )


@dataclass(frozen=True, slots=True)
class LinearLayers:
    """Linear layers of one name and shape, one in each of `count` blocks; experts are `copies` in each."""

    name: str
    count: int
    inputs: int
    outputs: int
    kind: Literal["linear", "output", "experts", "router"]
    copies: int


@dataclass(frozen=True, slots=True)
class ComponentCount:
    """How many parameter tensors a component has, and how many parameters they hold."""

    name: Component
    count: int
    parameters: int
    formula: str


def from_config(config: Mapping[str, Any], *, name: str | None = None, pointer: str = "/model/config") -> Architecture:
    """Reads the content of a Hugging Face `config.json`.

    Raises UnknownName for a `model_type` that no family has, UnsupportedModel for a class or a field whose meaning is
    unknown and would change the count; both point into the request under `pointer`.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnsupportedModel.at(
            f"{pointer}/model_type",
            "model_type is missing; send the whole config.json, or `parameters` instead of `config`",
        )
    if model_type not in FAMILIES:
        raise UnknownName.among(
            "model_type",
            model_type,
            sorted(FAMILIES),
            pointer=f"{pointer}/model_type",
            see="docs/families.md",
            instead="for another family, send `parameters` instead",
        )
    family = FAMILIES[model_type]
    assumptions = _check_class(config, family, pointer)
    fields = Fields(config, pointer, model_type)
    shapes = family.read(fields)
    unused = fields.finish()
    return Architecture(
        name=name or str(config.get("_name_or_path") or model_type)[:200],
        family=family,
        shapes=shapes,
        assumptions=(*assumptions, *shapes.assumptions),
        warnings=(f"config fields that change nothing here were not used: {', '.join(unused[:20])}",) if unused else (),
    )


def _check_class(config: Mapping[str, Any], family: Family, pointer: str) -> tuple[str, ...]:
    classes = config.get("architectures")
    if classes is None:
        return (f"`architectures` is missing: counted as {family.class_name}",)
    if not isinstance(classes, list) or classes[:1] not in (
        [name] for name in (family.class_name, *family.other_class_names)
    ):
        raise UnsupportedModel.at(
            f"{pointer}/architectures",
            f"only {family.class_name} is counted for model_type {family.model_type!r}, whose head and loss are known; "
            f"send architectures: [{family.class_name!r}] if you train that class, or `parameters`",
        )
    return ()


def from_parameters(parameters: int, *, pointer: str = "/model/parameters") -> Architecture:
    """Shapes inferred from a bare count: a Llama-like decoder with the usual aspect ratio, holding exactly
    `parameters`.

    Depth follows published models (12·L·h² parameters with h ≈ 128·L, from GPT-2 small to GPT-3 175B); what the shapes
    leave over belongs to no layer. Raises InvalidInput where no transformer is that small.
    """
    layers = max(1, _icbrt(parameters // (12 * 128 * 128)))
    step = 128 if parameters >= 10**8 else 8
    hidden = max(step, isqrt(parameters // (12 * layers)) // step * step)
    vocabulary = max(256, min(32_000, parameters // (6 * hidden)))
    heads = max(1, hidden // 128) if hidden % 128 == 0 else 1
    attention_and_norms = 4 * hidden * hidden + 2 * hidden
    left = parameters - 2 * vocabulary * hidden - hidden - layers * attention_and_norms
    inner = left // (3 * hidden * layers)
    if inner < 1:
        raise InvalidInput.at(
            pointer, f"{parameters:,} parameters are too few for a transformer with usual shapes; send `config` instead"
        )
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
        "unattributed_parameters": left - 3 * hidden * inner * layers,
    }
    shown = f"{layers} layers, hidden size {hidden}, MLP width {inner}, vocabulary {vocabulary}"
    return Architecture(
        name=f"{parameters:,} parameters",
        family=FAMILIES["llama"],
        shapes=Shapes(_INFERRED, sizes, longest_sequence=2**20),
        assumptions=(
            (
                f"shapes are inferred from the parameter count as a Llama-like decoder: {shown}; "
                "weights, gradients and optimizer states are exact, activations are not"
            ),
        ),
    )


def bare_count(parameters: int) -> Architecture:
    """A model of which only the parameter count is known: no layers, so nothing but the count can be asked of it."""
    nothing = dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
        ),
        0,
    )
    shapes = Shapes(_INFERRED, nothing | {"unattributed_parameters": parameters}, longest_sequence=1)
    return Architecture(name=f"{parameters:,} parameters", family=FAMILIES["llama"], shapes=shapes)


def _icbrt(value: int) -> int:
    root = int(value ** (1 / 3)) + 1
    while root**3 > value:
        root -= 1
    return root
