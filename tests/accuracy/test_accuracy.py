"""The command, the shipped table and its limits."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from app.accuracy import evidence, rows, scoring, shipped, table
from app.accuracy.rows import COLUMNS
from app.cli import main
from app.planning.coverage import SHIPPED, Evidence

TRUTH = Path(__file__).parent.parent / "ground_truth"
LLAMA = {
    "id": "X-1",
    "config_id": "X",
    "source_family": "nanotron_ultrascale",
    "measured_metric": "peak_mem_unspecified",
    "value": "36.67",
    "unit": "GB(unclear)",
    "gpu_model": "H100",
    "gpu_mem_gib": "80",
    "num_gpus": "8",
    "model_name": "nanotron-llama-1.34B",
    "hidden": "2048",
    "layers": "16",
    "heads": "32",
    "kv_heads": "32",
    "ffn": "8192",
    "vocab": "131072",
    "tied_embeddings": "true",
    "seq_len": "4096",
    "micro_batch_size": "1",
    "grad_accum": "32",
    "compute_dtype": "bf16",
    "param_dtype": "bf16",
    "grad_dtype": "fp32 accumulation",
    "optimizer": "AdamW (fused)",
    "zero_stage_or_fsdp": "zero0",
    "dp": "8",
    "tp": "1",
    "pp": "1",
    "framework": "nanotron",
}
STEP = {
    "config": "gpt2.json",
    "batch": 4,
    "seq": 512,
    "precision": "bf16",
    "gradient_checkpointing": False,
    "attention": "sdpa",
    "optimizer": "adamw",
    "peak_bytes": 3_085_971_968,
}


def write(folder: Path, measured: list[dict[str, str]], traced: list[dict[str, Any]]) -> Path:
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(measured)
    (folder / "steps.json").write_text(json.dumps(traced))
    return folder


def test_a_folder_gives_the_table_and_one_line_for_each_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crashed = {**LLAMA, "id": "X-2", "config_id": "Y", "measured_metric": "oom", "value": "1", "unit": "flag"}
    crashed |= {"micro_batch_size": "32"}
    fast = {**LLAMA, "id": "X-3", "measured_metric": "mfu", "unit": "%"}
    blank = {**LLAMA, "id": "X-4", "config_id": "Z", "micro_batch_size": ""}
    folder = write(tmp_path, [LLAMA, crashed, fast, blank], [STEP])
    lines = tmp_path / "rows.jsonl"

    assert main(["accuracy", str(folder), "--rows", str(lines)]) == 0

    said = capsys.readouterr()
    assert "5 rows, 4 about memory, 3 of these estimated" in said.out
    assert "the micro batch size is not stated" in said.out
    run, crash, throughput, left_out, step = (json.loads(line) for line in lines.read_text().splitlines())
    assert (run["measured_bytes"], run["run"], run["fits_expected"]) == (round(36.67 * 2**30), "finished", True)
    assert run["error"] == pytest.approx(run["predicted_bytes"] / run["measured_bytes"] - 1)
    assert abs(run["error"]) < 0.25
    assert run["predicted_bytes"] < run["upper_bound_bytes"]
    assert (crash["predicted_bytes"], crash["run"], crash["fits_expected"]) == (None, "out of memory", False)
    assert (throughput["kind"], throughput["reason"]) == (None, "throughput: not estimated yet")
    assert left_out["predicted_bytes"] is None
    assert step["predicted_bytes"] == pytest.approx(STEP["peak_bytes"], rel=0.001)


def test_nothing_is_dropped_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {**LLAMA, "id": "X-2", "layers": "sixteen"}
    folder = write(tmp_path, [LLAMA, broken, {**LLAMA, "measured_metric": ""}], [STEP, {"config": "gpt2.json"}])
    (folder / "notes.txt").write_text("by hand")
    (folder / "other.csv").write_text("a,b\n1,2\n")
    (folder / "other.json").write_text("{}")

    assert main(["accuracy", str(folder)]) == 0

    said = capsys.readouterr().err
    assert "runs.csv: line 3: layers is 'sixteen', not a number; row not read" in said
    assert "runs.csv: line 4: measured_metric is missing; row not read" in said
    assert "steps.json: entry 2: batch, seq, precision" in said
    assert "notes.txt: neither measurements (.csv) nor traced steps (.json); not read" in said
    assert "other.csv: not a file of measurements: its header lacks id" in said
    assert "other.json: not a list of traced steps; not read" in said


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_without_ground_truth_is_one_sentence(
    is_there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    if is_there:
        folder.mkdir()

    assert main(["accuracy", str(folder)]) == 2

    said = capsys.readouterr().err
    why = "holds no ground truth: no CSV of measurements and no JSON of traced steps" if is_there else "is not a folder"
    assert said == f"tonnage accuracy: {folder} {why}\n"


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, [], [STEP])

    assert main(["accuracy", str(folder), "--rows", str(tmp_path / "no" / "rows.jsonl")]) == 2

    assert "tonnage accuracy: cannot write" in capsys.readouterr().err


def test_the_shipped_table_and_what_it_covers_are_in_step_with_the_code() -> None:
    found = scoring.score(rows.read(TRUTH))

    covering = evidence.gather(found)
    lines = table.tabulate(found, covering).sources

    assert covering.evidence == dict(SHIPPED)
    known = {(line.source, line.kind): line for line in shipped.load().sources}
    for line in lines:
        there, made = known[line.source, line.kind].score, line.score
        assert (there.rows, there.expressed, there.worst) == (made.rows, made.expressed, made.worst)
        assert there.median_error == pytest.approx(made.median_error, abs=1e-4)


def test_what_a_folder_covers_is_counted_and_judges_its_own_bounds(tmp_path: Path) -> None:
    """Nine runs of nanotron, five of them with far more than the bound: whatever fails is put down to one feature."""
    runs = []
    for number in range(9):
        is_split, value = number >= 4, "79" if number >= 4 else "36.67"
        split = {"tp": "2", "dp": "4", "sp": "true", "value": value} if is_split else {}
        runs.append({**LLAMA, **split, "id": f"X-{number}", "config_id": str(number)})
    (tmp_path / "truth").mkdir()
    folder, module = write(tmp_path / "truth", runs, [STEP, {**STEP, "batch": 2}]), tmp_path / "covered.py"
    (folder / "runs.csv").rename(folder / "nanotron_ultrascale_playbook.csv")
    lines = tmp_path / "rows.jsonl"

    assert main(["accuracy", str(folder), "--covered", str(module), "--rows", str(lines)]) == 0

    written: dict[str, Any] = {}
    exec(module.read_text(), written)  # noqa: S102 - the module that this run has written
    covered = {feature: Evidence(*counts) for feature, counts in written["COVERED"].items()}
    assert covered["nanotron: optimizer adamw"][:4] == (9, 0, 9, 4)
    assert covered["transformers: attention sdpa"] == (0, 2, 2, 2, 0)
    assert not covered["transformers: attention sdpa"].is_covered
    (short,) = [feature for feature, found in covered.items() if found.short_percent]
    assert short in ("nanotron: sequence_parallel", "nanotron: tensor_parallel_size")
    assert covered[short][:4] == (5, 0, 5, 0)
    judged = [json.loads(line) for line in lines.read_text().splitlines()]
    assert all(row["upper_bound_bytes"] >= row["measured_bytes"] for row in judged)


def test_a_reading_over_several_gpus_is_compared_with_as_many_bounds(tmp_path: Path) -> None:
    one = {**LLAMA, "source_family": "qwen_readme"}
    folder = write(tmp_path, [one, {**one, "id": "X-2", "config_id": "Y", "measured_metric": "total_mem_all_gpus"}], [])

    single, total = scoring.score(rows.read(folder))

    assert single.upper_bound_bytes is not None
    assert (single.gpus, total.gpus) == (1, 8)
    assert total.upper_bound_bytes == single.upper_bound_bytes * total.gpus


LIMITS = {
    "traced": (0.001, 0.01),
    "allocated": (0.03, 0.15),
    "between steps": (0.02, 0.15),
    "reserved": (0.03, 0.42),
    "nvidia-smi": (0.08, 0.25),
    "unspecified": (0.07, 0.34),
}
"""Median and 95th percentile of absolute errors that no version may exceed, for the fully stated rows of sources
graded A and B. Each is a little above what this version reaches.
"""


@pytest.mark.parametrize("kind", LIMITS)
def test_the_shipped_table_is_no_worse_than_its_limits(kind: str) -> None:
    (line,) = [line for line in shipped.load().overall if (line.source, line.kind) == ("A and B, fully stated", kind)]

    assert line.score.median_error is not None
    assert line.score.p95_error is not None
    assert line.score.median_error <= LIMITS[kind][0]
    assert line.score.p95_error <= LIMITS[kind][1]


def test_runs_that_finished_are_said_to_fit_and_runs_out_of_memory_are_never_promised_to() -> None:
    found = {(verdicts.rows, verdicts.failures): verdicts for verdicts in shipped.load().verdicts}

    stated = found["A and B, fully stated", "out of memory"]
    assert stated.ran_said_not_to_fit <= stated.ran * 0.01
    assert found["all", "out of memory"].ran_out_within_bound == 0


def test_peers_are_beside_the_estimator_and_behind_it() -> None:
    scores = shipped.load().peers

    assert {score.peer for score in scores} >= {"lecture", "16 B/parameter + Korthikanti", "Megatron-LM report"}
    assert all(score.our_median_error < score.median_error for score in scores)
