"""A model as a ledger: every operation of its forward pass, written down once, with what PyTorch keeps of it.

A family's forward pass is run on `Tensor`s that have a size and a format but no data. Each operation is recorded with
the weights it owns, the tensors autograd saves for backward, its floating-point operations, and what its backward
allocates. Parameters, activations, transient peaks and FLOPs are sums over the same records, so they cannot disagree.

What an operation saves follows PyTorch's derivative formulas (tools/autograd/derivatives.yaml) and autocast's cast
rules; `Tape` speaks the language of single PyTorch operators, `app.planning.modules` that of layers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from app.planning.sizes import Size, named, total
from app.precision.formats import FORMATS

Component = Literal[
    "word_embedding",
    "position_embedding",
    "type_embedding",
    "relative_position",
    "embedding_projection",
    "attention",
    "mlp",
    "router",
    "routed_experts",
    "shared_experts",
    "ssm_or_linear_attention",
    "norm",
    "lm_head",
    "head_other",
    "vision",
    "audio",
    "projector",
    "other",
    "residual",
    "unattributed",
]
"""What a parameter or an activation belongs to; the names are those of the reference counts."""

BATCH = named("micro_batch_size")
SEQUENCE = named("sequence_length")
Split = Literal["column", "row", "vocabulary", "expert", "replicated"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter tensor. `split` says along which dimension tensor parallelism cuts it, as Megatron does."""

    name: str
    component: Component
    elements: Size
    split: Split = "replicated"
    trainable: bool = True
    """Whether it gets a gradient; a fixed table of positions does not."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of a training step: elements, format, and the part of the model that made it."""

    elements: Size
    format: str
    component: Component
    differentiable: bool = True

    @property
    def bytes(self) -> Size:
        """Its storage."""
        return self.elements * FORMATS[self.format].bytes


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer, under the name that the real class gives it: what a low-rank adapter can be put beside.

    `kind` tells an `nn.Linear` from the stacked matrices of experts (`copies` of them) and from a router's bare matrix.
    """

    name: str
    inputs: Size
    outputs: Size
    kind: Literal["linear", "experts", "router"] = "linear"
    copies: Size = field(default_factory=lambda: Size.of(1))


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One PyTorch operator of the forward pass and what its backward does.

    `saves` are alive from here until this operation's backward. Backward takes the gradient of `output` and allocates
    one gradient per tensor in `inputs`, unless it `passes` through as it is (an addition).
    """

    name: str
    component: Component
    inputs: tuple[Tensor, ...]
    output: Tensor
    saves: tuple[Tensor, ...] = ()
    weights: tuple[Weight, ...] = ()
    """Parameters it owns."""
    tied: tuple[Weight, ...] = ()
    """Parameters of an earlier operation that it uses too, and whose gradient it adds to."""
    casts: tuple[Tensor, ...] = ()
    """16-bit copies of the weights that autocast makes here; kept for backward, and by autocast's cache until forward
    ends.
    """
    passes: bool = False
    in_place: bool = False
    """Backward writes the gradient over what was saved, as Megatron's cross entropy does."""
    multiply_adds: Size = field(default_factory=lambda: Size({}))
    """Forward multiply-adds; a multiply-add is two floating-point operations."""
    backward_scratch: Size = field(default_factory=lambda: Size({}))
    """Bytes that exist only inside this operation's backward."""
    linear: Linear | None = None
    """The linear layer that this operation runs."""
    core: bool = False
    """Part of the attention core, which selective recomputation makes again."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """How a framework runs a model: which formats its operators see and which of them are fused."""

    parameters: str
    """Format of the weights the operators see."""
    compute: str
    """Format of matrix products; another one than `parameters` means autocast."""
    attention: Literal["flash", "sdpa", "eager"]
    fused: bool
    """Megatron's fused norms, activation functions and rotary embedding; else Hugging Face's operator by operator."""
    fused_cross_entropy: bool


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A run of operations: an embedding, one block, or the head with its loss."""

    name: str
    operations: tuple[Operation, ...]
    repeats: Size
    """How many times in a row the model has it."""
    parameter_format: str
    """Format of the weights its operations see."""
    block: bool
    """Whether it is a transformer block: the unit of full recomputation and of parameter sharding."""

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Its parameter tensors, for one repeat."""
        return tuple(weight for operation in self.operations for weight in operation.weights)

    @property
    def parameters(self) -> Size:
        """Its parameters, for one repeat."""
        return total(weight.elements for weight in self.weights)

    @property
    def multiply_adds(self) -> Size:
        """Forward multiply-adds of one repeat for one micro batch."""
        return total(operation.multiply_adds for operation in self.operations)


class Tape:
    """Records a forward pass operator by operator, as the given kernels run it."""

    def __init__(self, kernels: "Kernels") -> None:
        self.kernels = kernels
        self.parameters = kernels.parameters
        self.compute = kernels.compute
        self.sequence = SEQUENCE
        self._shared = False
        self.segments: list[Segment] = []
        self._operations: list[Operation] = []
        self._component: Component = "residual"
        self._module = ""
        self._path: tuple[str, ...] = ()
        self._names: Mapping[str, str] = {}
        self._core = False

    @property
    def component(self) -> Component:
        """The component of the module being recorded."""
        return self._component

    @property
    def tokens(self) -> Size:
        """Tokens of one micro batch in the sequence being recorded."""
        return BATCH * self.sequence

    @contextmanager
    def over(self, sequence: Size) -> Iterator[None]:
        """Everything recorded inside runs over sequences of this length, as a decoder beside its encoder does."""
        before, self.sequence = self.sequence, sequence
        yield
        self.sequence = before

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Everything recorded inside uses weights that earlier operations own, as ALBERT's repeated layers do."""
        before, self._shared = self._shared, True
        yield
        self._shared = before

    @property
    def autocast(self) -> bool:
        """Whether weights and inputs are cast on their way into matrix products."""
        return self.parameters != self.compute

    @contextmanager
    def segment(self, name: str, repeats: Size | None = None) -> Iterator[None]:
        """Everything recorded inside is one segment; one with `repeats` is a block."""
        self._operations = []
        yield
        block = repeats is not None
        self.segments.append(Segment(name, tuple(self._operations), repeats or Size.of(1), self.parameters, block))

    @contextmanager
    def module(self, name: str, component: Component) -> Iterator[None]:
        """Everything recorded inside belongs to this module and counts for this component.

        The module gets the name that `naming` gives `parent.name` or `name`, else `name` itself.
        """
        before = (self._module, self._path, self._component)
        inside = f"{self._path[-1]}.{name}" if self._path else name
        real = self._names.get(inside, self._names.get(name, name))
        self._module = ".".join(part for part in (self._module, real) if part)
        self._path = (*self._path, name)
        self._component = component
        yield
        self._module, self._path, self._component = before

    @contextmanager
    def naming(self, names: Mapping[str, str]) -> Iterator[None]:
        """Modules recorded inside are called as the real class calls them: `{"self_attn.o_proj": "c_proj"}`."""
        before, self._names = self._names, names
        yield
        self._names = before

    @contextmanager
    def attention_core(self) -> Iterator[None]:
        """Everything recorded inside is made again by selective recomputation."""
        before, self._core = self._core, True
        yield
        self._core = before

    def tensor(self, elements: Size, format: str, *, differentiable: bool = True) -> Tensor:
        """A tensor of the module being recorded."""
        return Tensor(elements, format, self._component, differentiable)

    def stream(self, elements: Size, format: str) -> Tensor:
        """A tensor of the residual stream, whichever module adds to it."""
        return Tensor(elements, format, "residual")

    def weight(
        self,
        name: str,
        elements: Size,
        *,
        split: Split = "replicated",
        trainable: bool = True,
    ) -> Weight:
        """A parameter of the module being recorded, under the name that the real class gives it."""
        return Weight(f"{self._module}.{name}".strip("."), self._component, elements, split, trainable)

    def record(
        self,
        name: str,
        inputs: tuple[Tensor, ...],
        output: Tensor,
        *,
        saves: tuple[Tensor, ...] = (),
        weights: tuple[Weight, ...] = (),
        tied: tuple[Weight, ...] = (),
        casts: tuple[Tensor, ...] = (),
        passes: bool = False,
        in_place: bool = False,
        multiply_adds: Size | None = None,
        backward_scratch: Size | None = None,
        linear: Linear | None = None,
    ) -> Tensor:
        """Writes one operation down and returns its output."""
        nothing = Size({})
        if self._shared:
            weights, tied = (), (*tied, *weights)
        self._operations.append(
            Operation(
                name=f"{self._module}.{name}".strip("."),
                component=self._component,
                inputs=inputs,
                output=output,
                saves=saves,
                weights=weights,
                tied=tied,
                casts=casts,
                passes=passes,
                in_place=in_place,
                multiply_adds=multiply_adds or nothing,
                backward_scratch=backward_scratch or nothing,
                linear=None if self._shared else linear,
                core=self._core,
            )
        )
        return output

    def to(self, x: Tensor, format: str) -> Tensor:
        """`x.to(dtype)`: nothing when the format is the same already."""
        return x if x.format == format else self.record("to", (x,), self.tensor(x.elements, format))

    def copy(self, x: Tensor, elements: Size | None = None) -> Tensor:
        """`contiguous()` or `repeat_kv`: a copy, of `elements` where it grows."""
        return self.record("clone", (x,), self.tensor(x.elements if elements is None else elements, x.format))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """A sum of two tensors; its gradient goes to both as it is where the formats agree."""
        return self.record("add", (a, b), self.stream(a.elements, promoted(a.format, b.format)), passes=True)

    def scale(self, x: Tensor, name: str = "scale") -> Tensor:
        """A product with a Python number: nothing is saved."""
        return self.record(name, (x,), self.tensor(x.elements, x.format))

    def pointwise(self, name: str, x: Tensor, *, saves_output: bool = False, format: str | None = None) -> Tensor:
        """A function of one tensor that saves its input, or its output as tanh, exp and softmax do."""
        output = self.tensor(x.elements, format or x.format)
        return self.record(name, (x,), output, saves=(output if saves_output else x,))

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """A product of two tensors: each is saved for the other's gradient."""
        saves = (*((b,) if a.differentiable else ()), *((a,) if b.differentiable else ()))
        inputs = tuple(x for x in (a, b) if x.differentiable)
        return self.record("mul", inputs, self.tensor(a.elements, promoted(a.format, b.format)), saves=saves)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """Dropout: a mask of one byte per element; nothing at all at probability 0."""
        if not probability:
            return x
        mask = self.tensor(x.elements, "bool", differentiable=False)
        return self.record("dropout", (x,), self.tensor(x.elements, x.format), saves=(mask,))

    def matmul(self, a: Tensor, b: Tensor, output_elements: Size, multiply_adds: Size) -> Tensor:
        """A batched matrix product of two activations, in the compute format; both are saved."""
        left, right = self.to(a, self.compute), self.to(b, self.compute)
        output = self.tensor(output_elements, self.compute)
        return self.record("matmul", (left, right), output, saves=(left, right), multiply_adds=multiply_adds)

    def linear(
        self,
        x: Tensor,
        into: Size,
        out: Size,
        *,
        bias: bool = False,
        split: Split = "replicated",
        tied_to: Weight | None = None,
        tokens: Size | None = None,
        adaptable: bool = True,
    ) -> Tensor:
        """`nn.Linear(into, out)` over all tokens, in the compute format. Saves its input and, under autocast, the cast
        weights. `adaptable` is false where the real class holds a bare matrix, as routers do.
        """
        weight = tied_to or self.weight("weight", into * out, split=split)
        bias_weight = (self.weight("bias", out, split=split if split == "column" else "replicated"),) if bias else ()
        owned = (*(() if tied_to else (weight,)), *bias_weight)
        casts: tuple[Tensor, ...] = ()
        if self.autocast:
            casts = (self.tensor(weight.elements, self.compute),)
        given = self.to(x, self.compute)
        return self.record(
            "linear",
            (given,),
            self.tensor((tokens or self.tokens) * out, self.compute),
            saves=(given,),
            weights=owned,
            tied=(tied_to,) if tied_to else (),
            casts=casts,
            multiply_adds=(tokens or self.tokens) * into * out,
            linear=Linear(self._module, into, out, "linear" if adaptable else "router"),
        )


def promoted(a: str, b: str) -> str:
    """The format of a sum or product: the wider of the two, FP32 for FP16 with BF16."""
    if a == b:
        return a
    return a if FORMATS[a].bits > FORMATS[b].bits else b if FORMATS[b].bits > FORMATS[a].bits else "fp32"
