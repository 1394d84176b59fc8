"""Parts of a model that see no token of a text: towers for images and sound, and what projects their output.

A training request says nothing of images yet, so these parts are declared by their weights: they take memory for
weights, gradients and optimizer states, can be adapted, and keep and compute nothing. A tower is a few stacks of parts
under the names of the real class; the sizes in it have a prefix, `vision_hidden_size`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from app.planning.families.fields import LARGEST_DIMENSION, LARGEST_LAYER_COUNT, Fields
from app.planning.ledger import Component, Linear, Tape
from app.planning.sizes import Size, named

NO_IMAGES = (
    "images and sound are not counted: towers and projectors have parameters, but no activations and no floating-point "
    "operations"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One module of a tower: its parameters by name, and its shape where it is an `nn.Linear`."""

    name: str
    weights: tuple[tuple[str, Size], ...]
    linear: tuple[Size, Size] | None = None
    component: Component | None = None
    """What it counts for where that is not what its stack counts for."""
    trainable: bool = True


@dataclass(frozen=True, slots=True)
class Stack:
    """Some parts of a tower under one path; layers where it has `repeats`."""

    path: str
    component: Component
    parts: tuple[Part, ...]
    repeats: Size | None = None


def linear(name: str, into: Size, out: Size, *, bias: bool = True, component: Component | None = None) -> Part:
    """`nn.Linear(into, out)`."""
    weights = (("weight", into * out), *((("bias", out),) if bias else ()))
    return Part(name, weights, (into, out), component)


def norm(name: str, width: Size, *, bias: bool = True, component: Component | None = None) -> Part:
    """A norm over `width`: LayerNorm with weight and bias, or RMSNorm without bias."""
    return Part(name, (("weight", width), *((("bias", width),) if bias else ())), None, component)


def convolution(name: str, kernel: Size, into: Size, out: Size, *, bias: bool = True) -> Part:
    """A convolution with `kernel` elements for each pair of an input and an output channel."""
    return Part(name, (("weight", kernel * into * out), *((("bias", out),) if bias else ())))


def weight(name: str, elements: Size, *, component: Component | None = None, trainable: bool = True) -> Part:
    """A parameter by itself, or the table of an `nn.Embedding`; a fixed one is not trainable."""
    return Part(name, (("weight", elements),), None, component, trainable)


def layer(
    width: Size,
    inner: Size,
    *,
    attention: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output: str = "self_attn.out_proj",
    mlp: tuple[str, ...] = ("mlp.fc1", "mlp.fc2"),
    norms: tuple[str, ...] = ("layer_norm1", "layer_norm2"),
    bias: bool = True,
    output_bias: bool = True,
    mlp_bias: bool = True,
    norm_bias: bool = True,
    heads_width: Size | None = None,
) -> tuple[Part, ...]:
    """A transformer layer. One name in `attention` is a joint matrix; three names in `mlp` are gate, up and down."""
    inside = width if heads_width is None else heads_width
    joint = len(attention) == 1
    *before, down = mlp
    return (
        *(norm(name, width, bias=norm_bias) for name in norms),
        *(linear(name, width, inside * 3 if joint else inside, bias=bias) for name in attention),
        linear(output, inside, width, bias=output_bias),
        *(linear(name, width, inner, bias=mlp_bias) for name in before),
        linear(down, inner, width, bias=mlp_bias),
    )


def record(tape: Tape, stack: Stack) -> None:
    """Writes a stack down as a segment of its own, whose operations have weights and nothing else."""
    name = f"{stack.path} layers" if stack.repeats is not None else stack.path
    with tape.segment(name, stack.repeats), tape.module(stack.path, stack.component):
        nothing = tape.tensor(Size({}), tape.parameters)
        for part in stack.parts:
            with tape.module(part.name, part.component or stack.component):
                tape.record(
                    "idle",
                    (nothing,),
                    nothing,
                    weights=tuple(
                        tape.weight(name, elements, trainable=part.trainable) for name, elements in part.weights
                    ),
                    linear=Linear(f"{stack.path}.{part.name}", *part.linear) if part.linear else None,
                )


def tower_sizes(
    fields: Fields, sizes: dict[str, int], defaults: Mapping[str, int], *, prefix: str = "vision"
) -> dict[str, Size]:
    """Reads sizes of a tower with their defaults into `sizes`, and gives them back by their plain names.

    Raises UnsupportedModel at the field that is wrong.
    """
    for name, default in defaults.items():
        layers = name.endswith(("layers", "depth"))
        sizes[f"{prefix}_{name}"] = fields.count(
            name, default, most=LARGEST_LAYER_COUNT if layers else LARGEST_DIMENSION
        )
    return {name: named(f"{prefix}_{name}") for name in defaults}


def put(sizes: dict[str, int], name: str, value: int) -> Size:
    """Names a size that follows from others."""
    sizes[name] = value
    return named(name)


def heads_divide(fields: Fields, sizes: Mapping[str, int], heads: str, width: str, *, prefix: str = "vision") -> None:
    """Refuses a number of heads that does not divide the width."""
    count, whole = sizes[f"{prefix}_{heads}"], sizes[f"{prefix}_{width}"]
    if whole % count:
        raise fields.refuse(heads, f"{heads} {count} does not divide {width} {whole}")


def pair(fields: Fields, name: str, default: int) -> tuple[int, int]:
    """A height and a width: one number for both, or a list of two."""
    value = fields.get(name)
    if not isinstance(value, list):
        side = fields.count(name, default)
        return side, side
    if len(value) != 2 or not all(
        isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST_DIMENSION for side in value
    ):
        raise fields.refuse(name, f"{name} must be a whole number or a list of two, not {str(value)[:60]}")
    return value[0], value[1]
