"""Peers against what their authors published."""

from dataclasses import replace

import pytest

from app.accuracy.peers import PEERS, Shape, korthikanti
from app.units import GIB

BY_NAME = {peer.name: peer.bytes for peer in PEERS}
ONE = Shape(
    parameters=10**9,
    s=2048,
    b=1,
    h=6144,
    f=4 * 6144,
    L=48,
    a=64,
    k=64,
    V=51200,
    t=1,
    p=1,
    v=1,
    d=1,
    m=1,
    zero=0,
    is_16_bit=True,
    sequence_parallel=False,
    recompute="none",
    flash=False,
    gated=False,
    tied=True,
    experts=0,
    offload="none",
    framework="megatron",
    context=1,
    gpus=1,
)


@pytest.mark.parametrize(
    ("sizes", "plain", "split"),
    [
        ({"h": 6144, "L": 48, "a": 64, "b": 4, "t": 8}, 59.25, 9.5625),
        ({"h": 25600, "L": 128, "a": 160, "b": 1, "t": 8, "p": 64, "m": 64}, 131.25, 26.5625),
    ],
)
def test_activations_of_the_paper(sizes: dict[str, int], plain: float, split: float) -> None:
    job = replace(ONE, **sizes)  # type: ignore[arg-type] # every size is an int
    selective = replace(job, sequence_parallel=True, recompute="selective")

    assert korthikanti(job) == plain * GIB
    assert korthikanti(selective) == split * GIB


def test_deepspeed_prints_what_its_documentation_shows_for_t5_3b() -> None:
    largest = 32_000_000
    job = replace(ONE, parameters=2_851_000_000, zero=3, d=8, gpus=8, h=1, V=largest, f=1)

    assert BY_NAME["DeepSpeed estimator"](job) == pytest.approx(6.09 * GIB, rel=0.001)
    assert BY_NAME["DeepSpeed estimator"](replace(job, offload="optimizer")) == pytest.approx(0.78 * GIB, rel=0.01)
    assert BY_NAME["DeepSpeed estimator"](replace(job, zero=2)) == pytest.approx(11.28 * GIB, rel=0.001)
    assert BY_NAME["DeepSpeed estimator"](replace(job, zero=1)) is None


def test_states_of_the_zero_paper() -> None:
    job = replace(ONE, parameters=7_500_000_000, d=64, gpus=64, L=0)
    found = [BY_NAME["16 B/parameter + Korthikanti"](replace(job, zero=stage)) for stage in (0, 1, 2, 3)]

    assert [round((amount or 0) / 1e9, 1) for amount in found] == [120.0, 31.4, 16.6, 1.9]


def test_megatron_report_adds_five_percent_without_sequence_parallelism() -> None:
    h, layers, tokens = 6144, 48, 2048
    states = 18 * (h * 51200 + layers * (4 * h * h + 2 * h * (4 * h + 2)) + 2 * h)
    kept = tokens * h * 34 * layers + 8 * tokens + tokens * h + 2 * tokens * (51200 + h)

    assert BY_NAME["Megatron-LM report"](ONE) == pytest.approx(states + 1.05 * kept)
    assert BY_NAME["Megatron-LM report"](replace(ONE, framework="transformers")) is None


def test_accelerate_knows_one_gpu() -> None:
    assert BY_NAME["accelerate"](replace(ONE, is_16_bit=False)) == 16e9
    assert BY_NAME["accelerate"](replace(ONE, gpus=2)) is None
