#!/usr/bin/env python3
"""Reference optimizer states: what real optimizers keep per tensor, and what their step() allocates in passing.

Development only: needs torch, transformers and, for what torch.optim lacks, bitsandbytes, torchao, came-pytorch,
galore-torch, adam-mini and pytorch-optimizer in an environment of its own; no GPU and no weights.

    python tools/reference_optimizers.py > tests/planning/reference_optimizers.json

Small tensors on the CPU: PyTorch's foreach operators return the same tensors there as on a GPU. bitsandbytes and
torchao step in one kernel without temporaries; only the states that they allocate are read.
"""

import gc
import json
import warnings
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

warnings.filterwarnings("ignore")

TENSORS = {
    "experts": (4, 96, 64),
    "embed_tokens": (1000, 64),
    "q_proj": (96, 64),
    "gate_proj": (320, 64),
    "down_proj": (64, 320),
    "square_proj": (64, 64),
    "odd_proj": (70, 61),
    "norm": (64,),
    "q_bias": (96,),
    "lm_head": (1000, 64),
}
HIDDEN = ("q_proj", "gate_proj", "down_proj", "square_proj", "odd_proj", "experts")
STEPS = 12
RANK = 8


class Allocations(TorchDispatchMode):
    """Bytes of storages that operators returned and that are still alive, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.live = {}
        self.bytes = self.peak = 0

    def _freed(self, key, size):
        def callback(_):
            self.live.pop(key, None)
            self.bytes -= size

        return callback

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or tensor.numel() <= 1:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self.live or storage._cdata in known:
                continue
            size = storage.nbytes()
            self.live[storage._cdata] = weakref.ref(storage, self._freed(storage._cdata, size))
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        return result


def parameters(names, dtype):
    torch.manual_seed(0)
    made = {}
    for name in names:
        made[name] = torch.nn.Parameter(torch.randn(TENSORS[name], dtype=torch.float32).to(dtype))
    return made


def storages(value, found):
    """The storages that a state reaches, through quantized tensors, lists and projectors."""
    if isinstance(value, torch.Tensor):
        inner = [getattr(value, name) for name in getattr(value, "tensor_attrs", ())]
        if inner:
            storages(inner, found)
        elif value.numel() > 1 or value.dim() > 1:
            found[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
    elif isinstance(value, dict):
        storages(list(value.values()), found)
    elif isinstance(value, list | tuple):
        for item in value:
            storages(item, found)
    elif hasattr(value, "ortho_matrix"):
        storages(value.ortho_matrix, found)


def state_bytes(optimizer, made):
    result = {}
    for name, parameter in made.items():
        found = {}
        storages(dict(optimizer.state.get(parameter, {})), found)
        result[name] = sum(found.values())
    return result


def run(optimizer, made):
    """Bytes of state per tensor, and the most that a step allocates beside what it leaves behind.

    One tracker sees all steps, so that a state which a step replaces is not counted as scratch.
    """
    scratch = 0
    allocations = Allocations()
    for _ in range(STEPS):
        for parameter in made.values():
            parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
        gc.collect()
        allocations.peak = allocations.bytes
        with allocations:
            optimizer.step()
        gc.collect()
        scratch = max(scratch, allocations.peak - allocations.bytes)
    return {"states": state_bytes(optimizer, made), "scratch": scratch}


def torch_optimizers(implementation):
    optim, flags = torch.optim, {"foreach": implementation == "foreach"}
    fused = {"fused": True} if implementation == "fused" else flags
    yield "adamw", lambda ps: optim.AdamW(ps, **fused)
    yield "adam", lambda ps: optim.Adam(ps, **fused)
    yield "adamw-amsgrad", lambda ps: optim.AdamW(ps, amsgrad=True, **fused)
    yield "sgd", lambda ps: optim.SGD(ps, **fused)
    yield "sgd-momentum", lambda ps: optim.SGD(ps, momentum=0.9, **fused)
    yield "adagrad", lambda ps: optim.Adagrad(ps, **fused)
    if implementation != "fused":
        yield "adamax", lambda ps: optim.Adamax(ps, **flags)
        yield "nadam", lambda ps: optim.NAdam(ps, **flags)
        yield "radam", lambda ps: optim.RAdam(ps, **flags)
        yield "rmsprop", lambda ps: optim.RMSprop(ps, **flags)
    if implementation == "for-loop":
        yield "torch-adafactor", lambda ps: optim.Adafactor(ps, foreach=False)


def others():
    from came_pytorch import CAME
    from pytorch_optimizer import SOAP
    from transformers import Adafactor

    yield "adafactor", lambda ps: Adafactor(ps, lr=1e-3, scale_parameter=False, relative_step=False)
    yield "came", lambda ps: CAME(ps, lr=1e-4)
    yield "soap", SOAP


def galore(made):
    from galore_torch import GaLoreAdamW

    targets = [p for name, p in made.items() if name in HIDDEN and p.dim() == 2]
    rest = [p for p in made.values() if not any(p is target for target in targets)]
    group = {"params": targets, "rank": RANK, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    return GaLoreAdamW([{"params": rest}, group], lr=1e-3, no_deprecation_warning=True)


def low_bit():
    import bitsandbytes as bnb
    import torchao.optim as ao

    made = parameters(TENSORS, torch.float32)
    for name, optimizer in (
        ("adamw-8bit", bnb.optim.AdamW8bit(made.values())),
        ("lion-8bit", bnb.optim.Lion8bit(made.values())),
        ("sgd-momentum-8bit", bnb.optim.SGD8bit(made.values(), lr=1e-3, momentum=0.9)),
        ("ademamix-8bit", bnb.optim.AdEMAMix8bit(made.values())),
        ("lion", bnb.optim.Lion32bit(made.values())),
        ("ademamix", bnb.optim.AdEMAMix(made.values())),
        ("paged-adamw", bnb.optim.PagedAdamW32bit(made.values())),
        ("paged-adamw-8bit", bnb.optim.PagedAdamW8bit(made.values())),
    ):
        states = {}
        for index, (tensor, parameter) in enumerate(made.items()):
            parameter.grad = torch.randn(parameter.shape)
            optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
            found = {}
            storages({k: v for k, v in optimizer.state[parameter].items() if not k.startswith("qmap")}, found)
            states[tensor] = sum(found.values())
        yield name, states
    for name, optimizer in (
        ("adamw-8bit-torchao", ao.AdamW8bit(made.values())),
        ("adamw-4bit-torchao", ao.AdamW4bit(made.values())),
    ):
        states = {}
        for tensor, parameter in made.items():
            found = {}
            storages([optimizer._new_buffer(parameter, signed) for signed in (True, False)], found)
            states[tensor] = sum(found.values())
        yield name, states


def main():
    rows = []

    def add(optimizer, implementation, dtype, result):
        rows.append({"optimizer": optimizer, "implementation": implementation, "format": dtype, **result})

    for dtype, type_ in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for implementation in ("foreach", "for-loop", "fused"):
            for name, make in torch_optimizers(implementation):
                made = parameters(TENSORS, type_)
                add(name, implementation, dtype, run(make(list(made.values())), made))
        for name, make in others():
            if name == "soap" and dtype == "bf16":
                continue
            made = parameters(TENSORS, type_)
            add(name, "for-loop", dtype, run(make(list(made.values())), made))
        made = parameters([name for name in HIDDEN if name != "experts"], type_)
        add("muon", "for-loop", dtype, run(torch.optim.Muon(list(made.values())), made))
        made = parameters(TENSORS, type_)
        add("galore-adamw", "for-loop", dtype, run(galore(made), made))
    from adam_mini import Adam_mini

    made = parameters([name for name in TENSORS if name != "experts"], torch.float32)
    in_mlp = ("gate_proj", "down_proj", "square_proj", "odd_proj")
    named = [(f"mlp.{name}" if name in in_mlp else name, parameter) for name, parameter in made.items()]
    add("adam-mini", "for-loop", "fp32", run(Adam_mini(named, dim=64, n_heads=4, verbose=False), made))
    for name, states in low_bit():
        add(name, "fused", "fp32", {"states": states, "scratch": 0})
    head = {"torch": torch.__version__, "galore_rank": RANK, "tensors": TENSORS}
    lines = [f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
    print("{\n", *lines, ' "rows": [\n', ",\n".join(f"  {json.dumps(row)}" for row in rows), "\n ]\n}", sep="")


if __name__ == "__main__":
    main()
