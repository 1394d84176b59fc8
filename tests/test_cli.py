import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from app import __version__, catalog
from app.api.requests import MemoryRequest, resolve_memory
from app.cli import main
from app.planning import memory
from app.planning.memory import MemoryEstimate
from app.planning.specs import Hardware, Lora, Parallelism, Training

ROOT = Path(__file__).parent.parent


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"tonnage {__version__}\n"


COMMANDS = ("serve", "migrate", "token", "estimate", "scaling", "accuracy", "convert", "agent")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"tonnage {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sreve"],
        ["serve", "--prot", "1"],
        ["token"],
        ["token", "create", "--name", "x"],
        ["token", "create", "--name", "x", "--role", "king"],
        ["token", "create", "--name", "x", "--role", "viewer", "--expires-in-days", "0"],
        ["token", "create", "--name", "x", "--role", "viewer", "--expires-in-days", "soon"],
        ["token", "create", "--name", "x", "--role", "viewer", "--node", "n1"],
    ],
)
def test_wrong_usage_is_refused_with_status_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: tonnage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["serve"], {"TONNAGE_PROT": "80"}, "tonnage serve: TONNAGE_PROT is not a setting; did you mean TONNAGE_PORT?"),
        (["serve"], {"TONNAGE_PORT": "x"}, "tonnage serve: TONNAGE_PORT should be a valid integer"),
        (["serve", "--port", "x"], {}, "tonnage serve: --port should be a valid integer"),
        (
            ["migrate", "--database-url", "mysql://h/d"],
            {},
            "tonnage migrate: --database-url should begin with postgresql://",
        ),
        (
            ["token", "list"],
            {"TONNAGE_DATABASE_URL_FILE": "/no/such"},
            "tonnage token: TONNAGE_DATABASE_URL_FILE names '/no",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_status_two(
    arguments: list[str],
    settings: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(sentence)
    assert (said.err.count("\n"), said.out) == (1, "")


def test_without_the_server_extra_the_missing_one_is_named() -> None:
    """As in an agent's environment: a finder that has none of the server's packages."""
    hide = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'fastapi', 'pydantic', 'sqlalchemy', 'uvicorn', 'starlette'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from app.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", hide, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    for command in (["serve"], ["migrate"], ["token", "list"], ["estimate", "7e9"], ["scaling", "--flops", "1e21"]):
        done = run(*command)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"tonnage {command[0]}: ")
        assert done.stderr.endswith("is not installed; install the server extra: pip install 'tonnage[server]'\n")
    assert run("agent", "--help").returncode == 0
    assert run("--version").returncode == 0


def test_estimate_answers_without_a_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "1e9", "--estimator", "rule_of_thumb", "--json"]) == 0
    assert '"total_bytes": 24000000000' in capsys.readouterr().out


LLAMA = "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (
            (
                "--framework megatron --tensor-parallel-size 4 --sequence-parallel --pipeline-parallel-size 4 "
                "--zero-stage 1 --layers-per-stage 7,9,9,7 --data-parallel-size 2 "
                "--gpu h100-sxm-80gb --gpus-per-node 8 --nodes 4"
            ),
            {
                "training": {"framework": "megatron"},
                "parallelism": {
                    "tensor_parallel_size": 4,
                    "sequence_parallel": True,
                    "pipeline_parallel_size": 4,
                    "zero_stage": 1,
                    "layers_per_stage": [7, 9, 9, 7],
                    "data_parallel_size": 2,
                },
                "hardware": {"gpu": "h100-sxm-80gb", "gpus_per_node": 8, "nodes": 4},
            },
        ),
        (
            "--method qlora --lora-rank 16 --lora-target-modules q_proj,v_proj --base-format nf4-double --prepared",
            {
                "training": {
                    "method": "qlora",
                    "lora": {
                        "rank": 16,
                        "target_modules": ["q_proj", "v_proj"],
                        "base_format": "nf4-double",
                        "prepared": True,
                    },
                }
            },
        ),
        (
            "--method lora --lora-target-modules all-linear",
            {"training": {"method": "lora", "lora": {"target_modules": "all-linear"}}},
        ),
        (
            "--recompute selective --recompute-modules mlp,layernorm --optimizer galore-adamw --galore-rank 64",
            {
                "training": {
                    "recompute": "selective",
                    "recompute_modules": ["mlp", "layernorm"],
                    "optimizer": "galore-adamw",
                    "galore_rank": 64,
                }
            },
        ),
        (
            "--compile --no-compile-loss",
            {"training": {"compile": True, "compile_loss": False}},
        ),
        (
            '--precision {"compute":"bf16","parameters":"bf16","gradients":"bf16"}',
            {"training": {"precision": {"compute": "bf16", "parameters": "bf16", "gradients": "bf16"}}},
        ),
    ],
)
def test_options_are_the_fields_of_the_request(
    options: str, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", LLAMA, *options.split(), "--json"]) == 0
    request = MemoryRequest.model_validate({"model": {"id": LLAMA}, **asked})
    expected = memory.estimate(resolve_memory(request, catalog.load()))
    assert json.loads(capsys.readouterr().out) == TypeAdapter(MemoryEstimate).dump_python(expected, mode="json")


def test_every_field_of_a_request_has_an_option_that_says_what_it_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main(["estimate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for spec in (Training, Parallelism, Hardware, Lora):
        for name, field in spec.model_fields.items():
            if (spec, name) not in ((Training, "lora"), (Lora, "rank"), (Lora, "target_modules")):
                assert f"--{name.replace('_', '-')}" in said
                assert " ".join((field.description or "").split())[:30] in said


def test_the_table_of_a_pipeline_shows_every_stage_and_counter(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["--framework", "megatron", "--pipeline-parallel-size", "2", "--data-parallel-size", "2"]
    assert main(["estimate", LLAMA, *layout]) == 0
    said = capsys.readouterr().out
    for words in ("nvidia-smi of stage 0", "max_memory_reserved", "max_memory_allocated", "between steps"):
        assert words in said
    assert re.search(r"^stage +expected +reserved +allocated +between steps\s+0 .*\s+1 ", said, re.MULTILINE)
    assert "host memory" not in said


def test_the_table_shows_host_memory_where_there_is_some(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["--framework", "deepspeed", "--data-parallel-size", "8", "--zero-stage", "3", "--offload", "optimizer"]
    assert main(["estimate", LLAMA, *layout, "--gpu", "h100-sxm-80gb", "--gpus-per-node", "8"]) == 0
    # 8,030,261,248 parameters / 8 ranks × 16 bytes: FP32 weights, two moments and gradients
    assert re.search(r"host memory +14\.96 GiB +per rank\s+119\.66 GiB +per node", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--zero-stage 7", "--zero-stage should be less than or equal to 3, not 7"),
        ("--recompute-modules mlp,x", "/training/recompute_modules/1 should be 'core_attn', 'mlp', "),
        ("--layers-per-stage 16,16", "layers_per_stage counts 2 stages, and pipeline_parallel_size is 1"),
        ("--lora-rank 16", "adapters need method lora or qlora; leave lora out otherwise"),
        ("--nodes 2", "--gpus-per-node and --nodes need --gpu"),
        ("--optimizer adamv", "--optimizer should be 'adamw', "),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_option(
    options: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", LLAMA, *options.split()]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"tonnage estimate: {sentence}")
    assert (said.err.count("\n"), said.out) == (1, "")


@pytest.mark.parametrize(
    "options", [["--layers-per-stage", "8,a"], ["--precision", "{"], ["--zero-stage", "x"], ["--compyle"]]
)
def test_an_option_that_cannot_be_read_is_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["estimate", LLAMA, *options])
    assert left.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_scaling_answers_as_the_api_would_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", LLAMA, "--tokens", "15e12", "--gpu-hours", "1e6", "--gpu", "h100-sxm-80gb", "--mfu", "0.4"]
    assert main(["scaling", *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["budget"]["gpu_hours"] == pytest.approx(1e6)
    assert answer["model"]["tokens"] == 15 * 10**12
    assert main(["scaling", *options, "--unique-tokens", "2e11", "--inference-tokens", "1e13"]) == 0
    table = capsys.readouterr().out
    for part in ("1.424e+24 FLOPs", "besiroglu-2024", "over-trained", "epochs", "with inference", "curated"):
        assert part in table


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--flops 1e21 --mfu 3", "--mfu should be less than or equal to 1"),
        ("--flops 1e21 --law chinchilla", "--law should be 'kaplan-2020', "),
        ("--gpu-hours 5", "gpu_hours needs the operations that a GPU gets done"),
        ("--model nowhere.json", "nowhere.json cannot be read"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_one_sentence(
    options: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", *options.split()]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"tonnage scaling: {sentence}")
    assert (said.err.count("\n"), said.out) == (1, "")


def test_migrate_brings_an_empty_database_up_to_date_and_again_does_nothing(empty_database: str) -> None:
    for _ in range(2):
        command = [sys.executable, "-m", "app.cli", "migrate", "--database-url", empty_database]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
