"""How far a source is to be trusted, and what most of its errors stay under."""

import math
from collections.abc import Iterable

GRADES = {
    "nanotron_ultrascale_playbook": "A",
    "fms_acceleration": "A",
    "megatron_lm_golden_values": "A",
    "mosaicml_llm_foundry": "A",
    "torchtitan": "A",
    "liger_kernel_op_memory": "A",
    "mlperf_training_results": "A",
    "unsloth_trl_notebooks": "A",
    "huggingface_peft": "A",
    "simumax_b200_real": "A",
    "megatron_bridge_measured_memory": "A",
    "train_memory": "A",
    "nvidia_dgxc_benchmarking": "B",
    "nvidia_megatron_bridge_nemo_perf": "B",
    "bigscience_bloom_chronicles": "B",
    "ms_swift_example_scripts": "B",
    "internlm_internevo_xtuner": "B",
    "qwen_readme_finetune": "B",
    "flagperf": "B",
    "google_gpu_recipes": "B",
    "torchtune": "B",
    "torchao": "B",
    "hf_docs_blogs": "B",
    "papers_megatron": "B",
    "colossalai": "B",
    "libai": "B",
    "nvidia_jax_toolbox": "B",
    "arctic_alst": "B",
}
"""Trust of each source by file name, as the README of the measurements grades it, without its sign: A for
machine-written logs with the full configuration, B for maintainers' tables. Every other file is C.
"""


def grade_of(source: str) -> str:
    """The trust grade of a file."""
    return GRADES.get(source.rpartition(".")[0], "C")


def percentile(values: Iterable[float], percent: int) -> float:
    """The smallest value that `percent` of 100 values do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]
