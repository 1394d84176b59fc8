"""How fast the main paths are on this machine: `make bench`. Each figure has a ratio of the same run beside it."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app import catalog
from app.planning.architecture import bare_count, from_config
from app.planning.memory import MemoryInputs, estimate, step_moments
from app.planning.recipe import resolve
from app.planning.sizes import largest_number
from app.planning.specs import Parallelism, Training

GRID_LAYOUTS = 100_000


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """CPU time of one call: the best of five rounds, so that a busy machine counts less."""
    work()
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeats):
            work()
        rounds.append((time.process_time() - start) / repeats)
    return min(rounds)


def say(what: str, seconds: float, beside: str) -> None:
    print(f"{what:52s} {seconds * 1e3:10.3f} ms CPU   {beside}")


def planning() -> None:
    model = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
    gpu = catalog.load().gpu("h100-sxm-80gb")
    detailed = MemoryInputs(model, Training(), Parallelism(data_parallel_size=8, zero_stage=3), gpu, 8, "detailed")
    rule = MemoryInputs(bare_count(model.parameters), Training(), Parallelism(), gpu, None, "rule_of_thumb")
    of_rule = cpu_seconds(lambda: estimate(rule), 500)
    of_detailed = cpu_seconds(lambda: estimate(detailed), 200)
    say("one detailed estimate, Llama-3.1-8B", of_detailed, f"{of_detailed / of_rule:.1f} × the rule of thumb")

    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 8}
    counting = cpu_seconds(lambda: from_config(config).parameters, 500)
    say("one exact count from a config.json", counting, f"{counting / of_detailed:.2f} × a detailed estimate")

    pricing = cpu_seconds(grid_of_layouts, 1)
    one = pricing / GRID_LAYOUTS
    say(f"a grid of {GRID_LAYOUTS:,} layouts", pricing, f"{of_detailed / one:,.0f} × as many a second as one by one")


def grid_of_layouts() -> np.ndarray:
    """Peaks of all layouts: micro batches × sequence lengths × shards, through the formulas of a single estimate."""
    model = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
    recipe = resolve(Training(), Parallelism(data_parallel_size=2, zero_stage=3), model)
    moments = step_moments(recipe.rules, model.ledger(recipe.rules.kernels))
    index = np.arange(GRID_LAYOUTS, dtype=np.int64)
    sizes = {
        **model.sizes,
        "parameters": model.parameters,
        "trainable_parameters": model.trainable_parameters,
        "largest_weight": 0,
        "micro_batch_size": 1 + index % 10,
        "sequence_length": 128 * (1 + index // 10 % 100),
        "data_parallel_size": 2 + index // 1000,
    }
    peaks: np.ndarray = largest_number(*(moment.allocated.evaluate(sizes) for moment in moments))
    return peaks


def every_reference_config() -> None:
    """The exact count of each config that the tests know: the first time in this process, and again."""
    files = sorted((Path(__file__).parent.parent / "tests" / "planning" / "reference_counts").glob("*.jsonl"))
    configs = [json.loads(line)["config"] for file in files for line in file.read_text().splitlines()]
    counts = []
    for config in configs:
        start = time.process_time()
        model = from_config(config)
        active = model.active_parameters
        first = time.process_time() - start
        again = cpu_seconds(lambda given=config: from_config(given).active_parameters, 3)
        counts.append((again, first, model.family.model_type, active == model.parameters))
    median = statistics.median(again for again, *_ in counts)
    first = statistics.median(first for _, first, *_ in counts)
    say(
        f"the median count of {len(counts):,} reference configs",
        median,
        f"the first time {first / median:.1f} × as long",
    )
    for what, chosen in (("dense", [one for one in counts if one[3]]), ("of all", counts)):
        most, _, model_type, _ = max(chosen)
        say(f"… the slowest {what}: {model_type}", most, f"{most / median:.0f} × the median")


def beside_accelerate() -> None:
    """One exact count beside accelerate's estimator, for the same config, if PEER_PYTHON names a Python that has it."""
    peer = os.environ.get("PEER_PYTHON")
    if peer is None:
        print("accelerate: set PEER_PYTHON to a Python with accelerate, transformers and torch to see it beside ours")
        return
    config = json.loads((Path(catalog.__file__).parent / "models" / "llama-3.1-8b.json").read_text())
    ours = cpu_seconds(lambda: from_config(config).parameters, 200)
    script = Path(__file__).with_name("accelerate_peer.py")
    ran = subprocess.run([peer, str(script)], input=json.dumps(config), capture_output=True, text=True, check=True)
    theirs = json.loads(ran.stdout.splitlines()[-1])
    say(
        "accelerate's estimator, Llama-3.1-8B, without imports",
        theirs["seconds"],
        f"{theirs['seconds'] / ours:,.0f} × ours",
    )
    say(
        "… and its imports",
        theirs["import_seconds"],
        f"same count: {theirs['parameters'] == from_config(config).parameters}",
    )


if __name__ == "__main__":
    every_reference_config()
    planning()
    beside_accelerate()
    sys.exit(0)
