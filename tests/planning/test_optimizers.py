"""Optimizer states and step scratch against real optimizers (reference_optimizers.json) and published arithmetic."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from app.errors import ImpossibleLayout
from app.planning.optimizers import ONE, Trained, cut_of, states_of
from app.planning.sizes import Size, evaluate, named
from app.planning.specs import Optimizer

REFERENCE: dict[str, Any] = json.loads(Path(__file__).with_name("reference_optimizers.json").read_text())
ROWS: list[dict[str, Any]] = REFERENCE["rows"]
BYTES = {"fp32": 4, "bf16": 2}

SAME_ALGORITHM = {"torch-adafactor": "adafactor"}
"""Two implementations of one optimizer: ours is Hugging Face's, whose factors are FP32 in every format."""

LEFT_OVER = 2
"""A loop over tensors still holds up to two temporaries of the tensor before while it works on the largest one. The
formula leaves them out: in a model the tensor beside the largest is much smaller.
"""
BESIDE_THE_LARGEST = 4 * 96 * 64


def label(row: dict[str, Any]) -> str:
    return "-".join((row["optimizer"], row["implementation"], row["format"]))


def trained(name: str) -> Trained:
    shape = [Size.of(size) for size in REFERENCE["tensors"][name]]
    kind = {"embedding": name in ("embed_tokens", "lm_head")}
    if len(shape) == 1:
        return Trained(shape[0])
    if len(shape) == 3:
        return Trained(shape[0] * shape[1] * shape[2], ONE, shape[1], shape[2], shape[0], stacked=True)
    return Trained(shape[0] * shape[1], ONE, shape[0], shape[1], **kind)


def states(row: dict[str, Any], names: list[str]) -> Any:
    return states_of(
        SAME_ALGORITHM.get(row["optimizer"], row["optimizer"]),
        row["implementation"],
        [trained(name) for name in names],
        state_bytes=BYTES[row["format"]],
        galore_rank=REFERENCE["galore_rank"],
    )


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_states_are_those_of_the_real_optimizer(row: dict[str, Any]) -> None:
    for name, real in row["states"].items():
        shares = 2 if row["optimizer"] == "torch-adafactor" and row["format"] == "bf16" else 1
        expected = real * shares
        if row["optimizer"] == "adam-mini" and name == "q_proj":
            assert states(row, [name]).bytes.evaluate({}) == pytest.approx(expected, rel=0.02)  # per head, not per row
        elif row["optimizer"] == "adam-mini" and name == "q_bias":
            assert expected == 2 * states(row, [name]).bytes.evaluate({})  # biases have Adam's moments
        else:
            assert states(row, [name]).bytes.evaluate({}) == expected, name


@pytest.mark.parametrize("row", [row for row in ROWS if row["optimizer"] not in SAME_ALGORITHM], ids=label)
def test_scratch_of_a_step_is_that_of_the_real_optimizer(row: dict[str, Any]) -> None:
    scratch = states(row, list(row["states"])).step_scratch.evaluate({})
    if row["implementation"] == "foreach" or row["optimizer"] == "muon":
        assert scratch == row["scratch"]
    elif row["implementation"] == "fused":
        assert scratch == row["scratch"] == 0
    else:
        element = 4 if row["optimizer"] in ("adafactor", "came") else BYTES[row["format"]]
        assert scratch <= row["scratch"] <= scratch + LEFT_OVER * BESIDE_THE_LARGEST * element


def test_every_optimizer_of_the_vocabulary_has_states_at_every_cut() -> None:
    weights = [trained(name) for name in REFERENCE["tensors"]]
    for optimizer in get_args(Optimizer):
        for cut in ("whole", "rows", "flat", "tensors"):
            found = states_of(
                optimizer, "foreach", weights, state_bytes=4, cut=cut, shards=named("ranks"), block=Size.of(10_000)
            )
            counts = np.array([1, 2, 8], dtype=np.int64)
            held = np.broadcast_to(found.bytes.evaluate({"ranks": counts}), counts.shape)
            assert list(held) == [evaluate(str(found.bytes), {"ranks": int(count)}) for count in counts]
            if "bit" not in optimizer:  # small shards are not quantized
                assert (held[:-1] >= held[1:]).all()
            assert (held >= 0).all()


def test_published_bytes_per_parameter_of_quantized_states() -> None:
    big = Trained(named("n"))
    for optimizer, expected in (
        ("adamw-8bit", 2 + 2 * 4 / 256),
        ("lion-8bit", 1 + 4 / 256),
        ("ademamix-8bit", 3 + 3 * 4 / 256),
        ("adamw-8bit-torchao", 2 + 2 * 4 / 256),
        ("adamw-4bit-torchao", 1 + 2 * 4 / 128),
    ):
        found = states_of(optimizer, "foreach", [big], state_bytes=4).bytes.evaluate({"n": 2**30})
        assert found / 2**30 == pytest.approx(expected, abs=1e-5)
    assert states_of("adamw-8bit", "fused", [big], state_bytes=2).bytes.evaluate({"n": 4095}) == 4095 * 8
    looked_up = Trained(named("n"), embedding=True, looked_up=True)
    assert states_of("adamw-8bit", "fused", [looked_up], state_bytes=2).bytes.evaluate({"n": 8192}) == 8192 * 8


def test_only_large_tensors_are_paged() -> None:
    sizes = {"n": 99_999}
    tensor = Trained(named("n"))
    assert states_of("paged-adamw", "fused", [tensor], state_bytes=4).evictable.evaluate(sizes) == 0
    assert states_of("paged-adamw", "fused", [tensor], state_bytes=4).evictable.evaluate({"n": 100_000}) == 800_000
    assert states_of("paged-adamw-8bit", "fused", [tensor], state_bytes=4).evictable.evaluate({"n": 100_000}) == 200_000


def test_fsdp_keeps_the_factors_of_each_rank_s_rows() -> None:
    matrix = Trained(Size.of(64 * 32), ONE, Size.of(64), Size.of(32))
    whole = states_of("adafactor", "foreach", [matrix], state_bytes=4).bytes.evaluate({})
    rows = states_of("adafactor", "foreach", [matrix], state_bytes=4, cut="rows", shards=Size.of(8)).bytes.evaluate({})
    flat = states_of("adafactor", "foreach", [matrix], state_bytes=4, cut="flat", shards=Size.of(8)).bytes.evaluate({})
    assert (whole, rows, flat) == (4 * (64 + 32), 4 * (8 + 32), 4 * 64 * 32 // 8)


def test_shampoo_cuts_long_sides_into_blocks() -> None:
    def factors(rows: int, columns: int) -> int:
        matrix = Trained(Size.of(rows * columns), ONE, Size.of(rows), Size.of(columns))
        held = states_of("shampoo", "foreach", [matrix], state_bytes=4).bytes.evaluate({})
        return int(held // 4 - 2 * rows * columns) // 2

    assert factors(1024, 512) == 1024**2 + 512**2
    assert factors(2048, 1024) == 2 * (1024**2 + 1024**2)
    assert factors(1500, 700) == 1024**2 + 476**2 + 2 * 700**2


def test_soap_leaves_long_sides_alone() -> None:
    table = Trained(Size.of(20_000 * 64), ONE, Size.of(20_000), Size.of(64), embedding=True)
    held = states_of("soap", "foreach", [table], state_bytes=4).bytes.evaluate({})
    assert held == 4 * 2 * (20_000 * 64 + 64 * 64)


def test_lomo_and_badam_hold_one_tensor_and_one_block() -> None:
    weights = [Trained(Size.of(1000)), Trained(Size.of(500))]
    lomo = states_of("lomo", "foreach", weights, state_bytes=2)
    assert (lomo.bytes.evaluate({}), lomo.step_scratch.evaluate({}), lomo.gradients) == (0, 8000, "largest")
    badam = states_of("badam", "fused", weights, state_bytes=4, block=Size.of(600))
    assert (badam.bytes.evaluate({}), badam.step_scratch.evaluate({}), badam.gradients) == (7200, 2400, "block")


@pytest.mark.parametrize(
    ("optimizer", "framework", "stage", "cut"),
    [
        ("adamw", "transformers", 3, "rows"),
        ("adamw", "deepspeed", 1, "flat"),
        ("muon", "megatron", 1, "tensors"),
        ("soap", "megatron", 1, "tensors"),
        ("muon", "deepspeed", 3, "flat"),
        ("shampoo", "transformers", 2, "rows"),
        ("galore-adamw", "deepspeed", 0, "whole"),
    ],
)
def test_how_frameworks_share_states(optimizer: Any, framework: Any, stage: int, cut: str) -> None:
    assert cut_of(optimizer, framework, stage) == cut


@pytest.mark.parametrize(
    ("optimizer", "framework", "stage"),
    [("galore-adamw", "transformers", 3), ("shampoo", "deepspeed", 1), ("soap", "transformers", 2)],
)
def test_matrix_optimizers_refuse_cut_matrices(optimizer: Any, framework: Any, stage: int) -> None:
    with pytest.raises(ImpossibleLayout) as refused:
        cut_of(optimizer, framework, stage)
    assert refused.value.errors[0].pointer == "/training/optimizer"
    assert "use" in refused.value.detail
