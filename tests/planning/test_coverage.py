"""Where a request lies outside what was ever measured, the upper bound is wider and a warning says so."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app import catalog
from app.accuracy import evidence, measured, rows, shipped, traced
from app.accuracy.jobs import Unexpressed
from app.accuracy.rows import TracedRow
from app.accuracy.scoring import features_of
from app.accuracy.sources import RULES
from app.errors import TonnageError
from app.planning import overheads
from app.planning.coverage import CHANGES, SHIPPED, Evidence, field_of
from app.planning.memory import MemoryEstimate, MemoryInputs, estimate
from app.planning.specs import Parallelism, Training

TRUTH = Path(__file__).parent.parent / "ground_truth"
LLAMA = "meta-llama/Llama-3.1-8B"
GOOD = Evidence(10, 0, 10, 10, 0)
DOUBTS = ("published runs or traced steps cover", "took more than expected")


def ask(model: str, training: dict[str, Any], layout: dict[str, Any], gpu: str = "h100-sxm-80gb") -> MemoryEstimate:
    known = catalog.load()
    return estimate(
        MemoryInputs(
            known.model(model).architecture,
            Training.model_validate(training),
            Parallelism.model_validate(layout),
            known.gpu(gpu),
            None,
            "detailed",
        )
    )


def doubts_in(answer: MemoryEstimate) -> list[str]:
    return [warning for warning in answer.warnings if any(sign in warning for sign in DOUBTS)]


@cache
def examples() -> Mapping[str, MemoryInputs]:
    """Of every feature that ground truth holds, a request of one of its rows."""
    truth, found = rows.read(TRUTH), dict[str, MemoryInputs]()
    siblings: dict[tuple[str, str], dict[str, float]] = {}
    for row in truth.measured:
        siblings.setdefault((row.file, row.config_id), {})[row.measured_metric] = row.value
    for row in (*truth.traced, *truth.measured):
        try:
            if isinstance(row, TracedRow):
                inputs = traced.job_of(row).inputs
            else:
                inputs = measured.job_of(row, siblings[row.file, row.config_id], RULES).inputs
            for feature in set(features_of(inputs)) - found.keys():
                estimate(inputs)
                found[feature] = inputs
        except (Unexpressed, TonnageError):
            continue
    return found


@pytest.mark.parametrize("feature", SHIPPED)
def test_a_feature_that_nothing_covers_widens_the_bound_and_is_named(feature: str) -> None:
    inputs = examples()[feature]
    everything = dict.fromkeys(features_of(inputs), GOOD)

    known = estimate(replace(inputs, covered=everything))
    unknown = estimate(replace(inputs, covered={name: GOOD for name in everything if name != feature}))
    twice = estimate(replace(inputs, covered={**everything, feature: Evidence(1, 1, 2, 2, 0)}))

    assert doubts_in(known) == []
    (said,) = doubts_in(unknown)
    assert feature.partition(": ")[2].removeprefix("architecture ") in said
    assert unknown.per_gpu.total_bytes == known.per_gpu.total_bytes
    is_wide_already = CHANGES[field_of(feature)] == "activations" and any("not verified" in w for w in known.warnings)
    if is_wide_already:
        assert unknown.per_gpu.upper_bound_bytes == known.per_gpu.upper_bound_bytes
    else:
        assert unknown.per_gpu.upper_bound_bytes > known.per_gpu.upper_bound_bytes
    assert twice.per_gpu.upper_bound_bytes == unknown.per_gpu.upper_bound_bytes


@pytest.mark.parametrize("feature", [name for name, found in SHIPPED.items() if found.short_percent])
def test_a_feature_whose_bound_held_too_seldom_widens_it_by_what_it_lacked(feature: str) -> None:
    inputs = examples()[feature]
    everything = dict.fromkeys(features_of(inputs), GOOD)

    usual = estimate(replace(inputs, covered=everything))
    wider = estimate(replace(inputs, covered={**everything, feature: SHIPPED[feature]}))

    (said,) = doubts_in(wider)
    assert f"{SHIPPED[feature].held} of {SHIPPED[feature].judged}" in said
    lacked = usual.sizes["allocated_bytes"] * SHIPPED[feature].short_percent // 100
    assert wider.per_gpu.upper_bound_bytes == usual.per_gpu.upper_bound_bytes + lacked


@pytest.mark.parametrize("feature", list(SHIPPED)[::10])
def test_the_less_is_covered_the_wider_the_bound(feature: str) -> None:
    inputs = examples()[feature]
    names = features_of(inputs)

    bounds = [
        estimate(replace(inputs, covered=dict.fromkeys(names[:count], GOOD))).per_gpu.upper_bound_bytes
        for count in range(len(names), -1, -1)
    ]

    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]


@pytest.mark.parametrize(
    ("training", "layout"),
    [
        ({}, {}),
        ({"recompute": "full"}, {"data_parallel_size": 8, "zero_stage": 3}),
        ({"precision": "bf16", "fused_cross_entropy": True}, {"data_parallel_size": 8, "zero_stage": 3}),
        ({"method": "lora"}, {}),
        (
            {"framework": "megatron", "optimizer": "adam", "recompute": "selective"},
            {
                "data_parallel_size": 2,
                "zero_stage": 1,
                "tensor_parallel_size": 4,
                "sequence_parallel": True,
                "pipeline_parallel_size": 4,
                "virtual_pipeline_size": 2,
                "context_parallel_size": 2,
            },
        ),
        ({"framework": "nanotron"}, {"tensor_parallel_size": 4, "sequence_parallel": True}),
        ({"framework": "torchtitan"}, {"data_parallel_size": 8, "zero_stage": 3}),
        ({"framework": "deepspeed"}, {"data_parallel_size": 8, "zero_stage": 2}),
    ],
)
def test_usual_jobs_come_without_doubts(training: dict[str, Any], layout: dict[str, Any]) -> None:
    assert doubts_in(ask(LLAMA, training, layout)) == []


def test_a_schedule_that_nobody_measured_is_named_with_its_framework() -> None:
    layout = {"pipeline_parallel_size": 4, "pipeline_schedule": "dualpipe-v"}
    training = {"framework": "megatron", "gradient_accumulation_steps": 16}

    (said,) = doubts_in(ask(LLAMA, training, layout))

    assert said == (
        "fewer than 3 published runs or traced steps cover pipeline_schedule dualpipe-v with megatron: activations and "
        "temporary memory may be 110 % more than expected, which the upper bound allows for"
    )


def test_doubts_about_the_same_thing_are_one_sentence_and_count_once() -> None:
    one = ask(LLAMA, {}, {"tensor_parallel_size": 2})
    both = ask(LLAMA, {"cuda_graphs": True}, {"tensor_parallel_size": 2})

    assert "tensor_parallel_size with transformers" in doubts_in(one)[0]
    assert "tensor_parallel_size and cuda_graphs with transformers" in doubts_in(both)[0]
    assert both.per_gpu.upper_bound_bytes == one.per_gpu.upper_bound_bytes


def test_a_family_that_no_traced_step_verifies_is_wider_too() -> None:
    answer = ask("state-spaces/mamba-130m-hf", {}, {})

    assert "activations of mamba models are not verified" in " ".join(answer.warnings)
    moving_bytes = answer.per_gpu.activations_bytes + answer.per_gpu.temporary_bytes
    assert answer.per_gpu.upper_bound_bytes > answer.per_gpu.total_bytes + moving_bytes


def test_every_feature_that_was_found_is_of_a_known_field() -> None:
    assert {field_of(feature) for feature in SHIPPED} <= CHANGES.keys()


def test_what_is_covered_is_what_the_shipped_table_says() -> None:
    assert {line.feature: line.evidence for line in shipped.load().features} == dict(SHIPPED)
    assert evidence.as_module(shipped.load().features) == (
        Path(evidence.__file__).parents[1] / "planning" / "covered.py"
    ).read_text("utf-8")


def test_the_upper_bound_allows_for_the_spread_of_what_is_covered() -> None:
    spread = shipped.load().spread

    assert spread["activations"] * 100 <= overheads.UNCOVERED_MOVING_PERCENT <= spread["activations"] * 100 + 25
    assert spread["states"] * 100 <= overheads.UNCOVERED_STATES_PERCENT <= spread["states"] * 100 + 25
