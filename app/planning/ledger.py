"""A model as a ledger: every operation of its forward pass, written down once, with what PyTorch keeps of it.

A family's forward pass is run on `Tensor`s that have a size and a format but no data. Each operation is recorded with
the weights it owns, the tensors autograd saves for backward, its floating-point operations, and what its backward
allocates. Parameters, activations, transient peaks and FLOPs are sums over the same records, so they cannot disagree.

What an operation saves follows PyTorch's derivative formulas (tools/autograd/derivatives.yaml) and autocast's cast
rules; `Tape` speaks the language of single PyTorch operators, `app.planning.modules` that of layers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from app.planning.sizes import Size, named, total
from app.planning.specs import Recompute, RecomputeModule
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
BlockRecompute = Recompute | Literal["operators"]
"""What of a block backward makes again; `operators` keeps the outputs of some, as torchtitan's selective checkpointing
does.
"""

Split = Literal["column", "row", "vocabulary", "expert", "replicated"]

_TENSOR_SPLIT = (
    "num_attention_heads",
    "num_key_value_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "intermediate_size",
    "shared_expert_intermediate_size",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "vocab_size",
    "decoder_vocab_size",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "mamba_num_heads",
    "mamba_num_groups",
    "mamba_inner_size",
)
"""Sizes that tensor parallelism divides; those of layers that differ have a suffix."""

_EXPERT_SPLIT = ("num_experts", "moe_intermediate_size")
"""Sizes that expert parallelism, or tensor parallelism of experts, divides inside routed experts."""


def per_rank(name: str) -> str:
    """What a size is called on one of the ranks that split it."""
    return f"{name}_per_rank"


def shard(name: str) -> str:
    """What a sequence length is called where sequence parallelism splits it as well."""
    return f"{name}_shard"


def whole_name(local: str) -> str | None:
    """The size that `local` is a rank's part of; None where it is not one."""
    return local.removesuffix("_per_rank") if local.endswith("_per_rank") else None


@lru_cache(maxsize=4096)
def is_tensor_split(name: str) -> bool:
    """Whether tensor parallelism divides this size."""
    return any(name == base or name.startswith(base + "_") for base in _TENSOR_SPLIT)


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter tensor. `split` says along which dimension tensor parallelism cuts it, as Megatron does."""

    name: str
    component: Component
    elements: Size
    split: Split = "replicated"
    trainable: bool = True
    """Whether it gets a gradient; a fixed table of positions does not."""
    format: str | None = None
    """Where it is not that of the model's parameters: quantized weights, adapters."""
    rows: Size | None = None
    """Output features of a matrix, as `nn.Linear` lays it out, or entries of a table; None for a vector."""
    columns: Size | None = None
    """Input features of a matrix, or the width of a table."""
    copies: Size = field(default_factory=lambda: Size.of(1))
    """Matrices stacked in one tensor, as experts are."""


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
    forward_scratch: Size = field(default_factory=lambda: Size({}))
    """Bytes that exist only while forward runs this operation: a variable that the code still holds."""
    linear: Linear | None = None
    """The linear layer that this operation runs."""
    core: bool = False
    """Part of the attention core, which selective recomputation makes again."""
    in_block: bool = False
    """The first block runs it: with full recomputation, nothing that it saves stays."""
    buffers: tuple[Tensor, ...] = ()
    """Tensors that the class holds beside its parameters, at every moment: a causal mask for all positions."""
    released: bool = False
    """The code lets go of its output before forward ends; a loss still holds the logits it was made of."""


ShiftedLoss = Literal["never", "inside", "in-model"]
"""Whether the logits are copied without those of the last position: by a loss function while the model's code still
holds the 16-bit ones (transformers 4.46 to 4.48), or by the model's code, which has let go of them (before).
"""

LigerNorm = Literal["in-place", "beside"]
"""Where Liger's RMSNorm writes the gradient of its input: over that of its output, or into a tensor of its own."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """How a framework runs a model: which formats its operators see, which of them are fused, and what is split."""

    parameters: str
    """Format of the weights the operators see."""
    compute: str
    """Format of matrix products; another one than `parameters` means autocast."""
    attention: Literal["flash", "sdpa", "eager"]
    fused: bool
    """Megatron's fused norms, activation functions and rotary embedding; else Hugging Face's operator by operator."""
    fused_cross_entropy: bool
    fused_norm: bool = False
    """One kernel for a norm, also where the rest is not fused (nanotron, torchtitan)."""
    in_place_loss: bool = False
    """The loss writes the gradient of the FP32 logits over them."""
    shifted_loss: ShiftedLoss = "never"
    one_qkv_buffer: bool = False
    """Rotated queries stay a part of the tensor that held keys and values too, where there are as many heads of each
    (nanotron).
    """
    sharded_loss: bool = False
    """Megatron's and nanotron's cross entropy over the vocabulary of one tensor-parallel rank."""
    liger: LigerNorm | None = None
    """Liger's Triton kernels for norms, gated products and the loss; which RMSNorm it puts into the model's class."""
    compiled: bool = False
    """`torch.compile`: what is cheap to make again from what is kept, is."""
    compiled_loss: bool = True
    """Whether that holds for head and loss as well as for blocks."""
    fp8: bool = False
    """Transformer Engine's FP8 matrix products: linear layers keep their input in 8 bits, and 8-bit copies of weights.
    torchao's, in torchtitan, keep the 16-bit ones and cast them again.
    """
    tensor_parallel: bool = False
    sequence_parallel: bool = False
    context_parallel: bool = False
    expert_parallel: bool = False
    gathers_again: bool = False
    """With sequence parallelism, a column-parallel layer keeps its shard of the input and gathers it again in backward
    (Megatron); else it keeps the gathered input (DTensor).
    """
    packed: bool = False
    """Sequences of several documents, which Hugging Face's `sdpa` keeps apart by a mask. Flash attention takes their
    boundaries, and eager attention has a mask in any case.
    """
    frozen: bool = False
    """The model's own weights get no gradient: adapters do."""
    skips_idle: bool = False
    """Parameters that the pass does not use get no gradient and so no states, as PyTorch's optimizers have it; the flat
    buffers of other frameworks have room for them.
    """
    under_autocast: bool = False
    """Autocast over weights that are in the compute format already, as the Trainer runs adapters."""
    adapters: "AdapterRule | None" = None
    base_format: str | None = None
    """Format of the linear layers' frozen weights in blocks, where it is not `parameters`."""

    @property
    def stream_length(self) -> str:
        """The name of the sequence length that the residual stream has on one rank."""
        if self.sequence_parallel:
            return shard("sequence_length")
        return per_rank("sequence_length") if self.context_parallel else "sequence_length"


@dataclass(frozen=True, slots=True)
class AdapterRule:
    """Which linear layers have a low-rank adapter: those whose name ends in one of `targets`. Its rank is the size
    `lora_rank`.
    """

    targets: frozenset[str]
    format: str
    """Format of the adapters' weights."""
    trained_whole: frozenset[str] = frozenset()
    """Modules that are trained beside the adapters, by the last part of their name."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A run of operations: an embedding, one block, or the head with its loss."""

    name: str
    operations: tuple[Operation, ...]
    repeats: Size
    """How many times in a row the model has it, or the running chunk of a pipeline stage."""
    parameter_format: str
    """Format of the weights its operations see."""
    block: bool
    """Whether it is a transformer block: the unit of full recomputation and of parameter sharding."""
    held: Size | None = None
    """How many of it the rank holds the weights of; None for `repeats`."""
    waiting: Size | None = None
    """How many of it keep activations of other micro batches, which wait for their backward; None for none."""
    recompute: BlockRecompute = "none"
    """What of it backward makes again."""
    remade: frozenset[RecomputeModule] = frozenset()
    """The modules that `selective` recomputation makes again."""
    frozen: bool = False
    """Whether no gradient comes this far down: it keeps nothing and has no backward."""
    offloaded: bool = False
    """Whether what it keeps waits in host memory; two of its inputs are on the GPU, on their way."""
    lingers: bool = False
    """Whether what it keeps, and the gradient of its input, stay until backward ends."""

    @property
    def copies(self) -> Size:
        """How many of it the rank holds the weights of."""
        return self.repeats if self.held is None else self.held

    @property
    def layer(self) -> bool:
        """Whether it is a layer that runs, as those of a tower that sees no token are not: what pipeline stages share
        out, and what `recompute_layers` and `frozen_layers` count.
        """
        return self.block and any(operation.multiply_adds for operation in self.operations)

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
        self._sequence = "sequence_length"
        self._shared = False
        self._gathered: dict[Tensor, Tensor] = {}
        self.segments: list[Segment] = []
        self._operations: list[Operation] = []
        self._component: Component = "residual"
        self._module = ""
        self._path: tuple[str, ...] = ()
        self._names: Mapping[str, str] = {}
        self._core = False
        self._released = False
        self._outside: dict[tuple[str, Size], Tensor] = {}

    @property
    def component(self) -> Component:
        """The component of the module being recorded."""
        return self._component

    @property
    def whole_sequence(self) -> Size:
        """Length of the sequence being recorded, over all context-parallel ranks: that of attention's keys."""
        return named(self._sequence)

    @property
    def sequence(self) -> Size:
        """Length of what one rank has of the sequence being recorded."""
        return named(per_rank(self._sequence) if self.kernels.context_parallel else self._sequence)

    @property
    def tokens(self) -> Size:
        """Tokens of one micro batch that one rank has of the sequence being recorded."""
        return BATCH * self.sequence

    def rows_of(self, x: "Tensor") -> Size:
        """Tokens of the sequence being recorded that `x` has: a shard of them under sequence parallelism."""
        return self._sharded(self.tokens) if self._is_shard(x) else self.tokens

    @contextmanager
    def over(self, sequence: Size) -> Iterator[None]:
        """Everything recorded inside runs over sequences of this length, as a decoder beside its encoder does."""
        (name,) = sequence.names
        before, self._sequence = self._sequence, name
        yield
        self._sequence = before

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Everything recorded inside uses weights that earlier operations own, as ALBERT's repeated layers do; autocast
        has their casts already.
        """
        before, self._shared = self._shared, True
        yield
        self._shared = before

    @property
    def autocast(self) -> bool:
        """Whether autocast is on: it casts what enters matrix products, and runs norms and losses in FP32."""
        return self.casts_weights or self.kernels.under_autocast

    @property
    def casts_weights(self) -> bool:
        """Whether weights are cast on their way into matrix products."""
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

    @contextmanager
    def releasing(self) -> Iterator[None]:
        """Outputs of everything recorded inside are gone when forward ends, unless autograd saved them."""
        before, self._released = self._released, True
        yield
        self._released = before

    def tensor(self, elements: Size, format: str, *, differentiable: bool = True) -> Tensor:
        """A tensor of the module being recorded."""
        return Tensor(self.local(elements), format, self._component, differentiable)

    def outside(self, name: str, elements: Size, format: str) -> Tensor:
        """A tensor without a gradient that is made once, before all blocks, and read by many: an attention mask."""
        made = Tensor(elements, format, self._component, differentiable=False)
        return self._outside.setdefault((name, elements), made)

    def stream(self, elements: Size, format: str) -> Tensor:
        """A tensor of the residual stream, whichever module adds to it; sequence parallelism splits it."""
        return Tensor(self._sharded(elements) if self.kernels.sequence_parallel else elements, format, "residual")

    def local(self, size: Size) -> Size:
        """What one rank has of `size`: what tensor and expert parallelism split gets the name it has on a rank."""
        if not (self.kernels.tensor_parallel or self.kernels.expert_parallel):
            return size
        if self._component == "routed_experts":
            split = [name for name in size.names if self.kernels.expert_parallel and name in _EXPERT_SPLIT]
        else:
            split = [name for name in size.names if self.kernels.tensor_parallel and is_tensor_split(name)]
        return size.renamed({name: per_rank(name) for name in split if whole_name(name) is None})

    def routed(self, x: "Tensor", per_token: Size) -> Size:
        """Tokens that come to the experts of one rank, each as often as it chose one of them."""
        return named("routed_tokens") if self.kernels.expert_parallel else self.rows_of(x) * per_token

    def _sharded(self, size: Size) -> Size:
        whole = per_rank(self._sequence) if self.kernels.context_parallel else self._sequence
        return size.renamed({whole: shard(self._sequence)})

    def _is_shard(self, x: "Tensor") -> bool:
        return self.kernels.sequence_parallel and shard(self._sequence) in x.elements.names

    def gather(self, x: "Tensor") -> "Tensor":
        """The whole sequence of `x`, from all ranks that hold a shard of it; `x` itself where it is whole."""
        if not self._is_shard(x):
            return x
        if x not in self._gathered:
            (whole,) = self.sequence.names
            output = Tensor(x.elements.renamed({shard(self._sequence): whole}), x.format, x.component)
            self._gathered[x] = self.record("all_gather", (x,), output)
        return self._gathered[x]

    def _reduce_scatter(self, x: "Tensor") -> "Tensor":
        if not self.kernels.sequence_parallel:
            return x
        return self.record("reduce_scatter", (x,), self.stream(x.elements, x.format))

    def weight(
        self,
        name: str,
        elements: Size,
        *,
        split: Split = "replicated",
        trainable: bool = True,
    ) -> Weight:
        """A parameter of the module being recorded, under the name that the real class gives it."""
        full_name = f"{self._module}.{name}".strip(".")
        return Weight(full_name, self._component, self.local(elements), split, trainable and self._trains())

    def matrix(
        self,
        name: str,
        rows: Size,
        columns: Size,
        *,
        copies: Size | None = None,
        split: Split = "replicated",
        trainable: bool = True,
    ) -> Weight:
        """A matrix of the module being recorded, or `copies` of them stacked in one tensor."""
        stacked = Size.of(1) if copies is None else copies
        full_name = f"{self._module}.{name}".strip(".")
        rows, columns, stacked = self.local(rows), self.local(columns), self.local(stacked)
        trained = trainable and self._trains()
        return Weight(
            full_name,
            self._component,
            stacked * rows * columns,
            split,
            trained,
            rows=rows,
            columns=columns,
            copies=stacked,
        )

    def trains(self, weights: tuple[Weight, ...]) -> bool:
        """Whether one of these weights gets a gradient."""
        return any(weight.trainable for weight in weights)

    def _trains(self) -> bool:
        """Whether the model's own weights of the module being recorded get a gradient."""
        rule = self.kernels.adapters
        whole = rule is not None and self._module.rpartition(".")[2] in rule.trained_whole
        return whole or not self.kernels.frozen

    def record(
        self,
        name: str,
        inputs: tuple[Tensor, ...],
        output: Tensor,
        *,
        saves: tuple[Tensor, ...] = (),
        saves_for_weights: tuple[Tensor, ...] = (),
        weights: tuple[Weight, ...] = (),
        tied: tuple[Weight, ...] = (),
        casts: tuple[Tensor, ...] = (),
        passes: bool = False,
        in_place: bool = False,
        multiply_adds: Size | None = None,
        backward_scratch: Size | None = None,
        forward_scratch: Size | None = None,
        linear: Linear | None = None,
        in_block: bool = False,
        buffers: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Writes one operation down and returns its output. `saves_for_weights` is kept for the weights' gradients
        only: not where they are frozen.
        """
        nothing = Size({})
        if not self.kernels.frozen or self.trains((*weights, *tied)):
            saves = (*saves, *saves_for_weights)
        if name == "idle" and self.kernels.skips_idle:
            weights = tuple(replace(weight, trainable=False) for weight in weights)
        if self._shared:
            weights, tied, casts = (), (*tied, *weights), ()
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
                multiply_adds=self.local(multiply_adds) if multiply_adds else nothing,
                backward_scratch=backward_scratch or nothing,
                forward_scratch=forward_scratch or nothing,
                linear=None if self._shared else linear,
                core=self._core,
                released=self._released,
                in_block=in_block,
                buffers=buffers,
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
        """A product of two tensors: each is saved for the other's gradient, which is made in the product's format and
        size before it is cast or summed to its own.
        """
        saves = (*((b,) if a.differentiable else ()), *((a,) if b.differentiable else ()))
        output = self.tensor(a.elements, promoted(a.format, b.format))
        inputs = tuple(self.to(x, output.format) for x in (a, b) if x.differentiable)
        whole = output.bytes if a.elements != b.elements and b.differentiable else None
        return self.record("mul", inputs, output, saves=saves, backward_scratch=whole)

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
        weight = tied_to or self.matrix("weight", out, into, split=split)
        bias_weight = (self.weight("bias", out, split=split if split == "column" else "replicated"),) if bias else ()
        if self.kernels.base_format and adaptable and split != "vocabulary" and not weight.trainable:
            weight = replace(weight, format=self.kernels.base_format)
        casts: tuple[Tensor, ...] = ()
        if self.casts_weights and weight.format is None:
            casts = (self.tensor(weight.elements, self.compute),)
        if self.kernels.fp8 and split != "vocabulary":
            casts = (self.tensor(weight.elements * 2, "fp8"),)
        narrow = self.to(x, self.compute)
        given = self.gather(narrow) if split in ("column", "vocabulary") else narrow
        kept, scratch = given, Size({})
        if given is not narrow and self.kernels.gathers_again:
            kept, scratch = narrow, given.bytes
        if self.kernels.fp8 and split != "vocabulary":
            kept = self.tensor(kept.elements, "fp8")
        if weight.format is not None:
            scratch = scratch + weight.elements * FORMATS[self.compute].bytes
        rows = tokens or (self.tokens if given is not narrow or split in ("column", "row") else self.rows_of(narrow))
        output = self.record(
            "linear",
            (given,),
            self.tensor(rows * out, self.compute),
            saves_for_weights=(kept,),
            weights=(*(() if tied_to else (weight,)), *bias_weight),
            tied=(tied_to,) if tied_to else (),
            casts=casts,
            multiply_adds=rows * into * out,
            backward_scratch=scratch,
            linear=Linear(self._module, into, out, "linear" if adaptable else "router"),
        )
        output = self.beside(given, output, into, out, rows)
        return self._reduce_scatter(output) if split == "row" and tokens is None else output

    def beside(
        self,
        x: Tensor,
        base: Tensor,
        into: Size,
        out: Size,
        rows: Size,
        *,
        copies: Size | None = None,
        stacked: int = 1,
    ) -> Tensor:
        """B(A(x)) beside the frozen layer being recorded where the rule has one, added to its output `base` (PEFT's
        `lora.Linear`); beside each of `copies` experts, with `stacked` times the rank where it is several matrices in
        one. A's input is cast to the adapter's format first, and by autocast from there to the compute format; the
        code holds that first cast until B is done.
        """
        rule = self.kernels.adapters
        if rule is None or self._module.rpartition(".")[2] not in rule.targets:
            return base
        rank = named("lora_rank") * stacked
        format = self.compute if self.autocast else rule.format
        wide = self.to(x, rule.format)
        given = self.to(wide, format)
        down = self._adapter_weight("lora_A.weight", rank, into, copies, rule.format)
        up = self._adapter_weight("lora_B.weight", out, rank, copies, rule.format)
        casts = [(self.tensor(weight.elements, format),) if rule.format != format else () for weight in (down, up)]
        narrow = self.tensor(rows * rank, format)
        self.record("lora_A", (given,), narrow, saves=(given,), weights=(down,), casts=casts[0])
        delta = self.tensor(rows * out, format)
        held = wide.bytes if wide is not given and wide is not x else Size({})
        self.record("lora_B", (narrow,), delta, saves=(narrow,), weights=(up,), casts=casts[1], forward_scratch=held)
        output = self.tensor(base.elements, promoted(base.format, format))
        return self.to(self.record("add", (base, self.scale(delta)), output, passes=True), base.format)

    def _adapter_weight(self, name: str, rows: Size, columns: Size, copies: Size | None, format: str) -> Weight:
        rows, columns = self.local(rows), self.local(columns)
        stacked = Size.of(1) if copies is None else self.local(copies)
        elements = stacked * rows * columns
        full_name = f"{self._module}.{name}"
        return Weight(full_name, self._component, elements, format=format, rows=rows, columns=columns, copies=stacked)


def promoted(a: str, b: str) -> str:
    """The format of a sum or product: the wider of the two, FP32 for FP16 with BF16."""
    if a == b:
        return a
    return a if FORMATS[a].bits > FORMATS[b].bits else b if FORMATS[b].bits > FORMATS[a].bits else "fp32"
