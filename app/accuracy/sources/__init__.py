"""Rules that one source of measurements needs beside the shared ones, by `source_family`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from app.accuracy.jobs import Draft
from app.accuracy.rows import MeasuredRow
from app.accuracy.sources import finetuning, fms, megatron, nanotron, pretraining, simumax, torchtitan

Rule = Callable[[MeasuredRow, Draft, Mapping[str, float]], None]
"""Changes a draft by what a source's own columns and notes mean; the mapping holds all metrics of the row's
configuration. Raises Unexpressed.
"""

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "nanotron_ultrascale": nanotron.rule,
        "fms_acceleration": fms.rule,
        "megatron_golden": megatron.rule,
        "torchtitan": torchtitan.rule,
        "torchao": torchtitan.rule,
        "simumax_b200": simumax.rule,
        "qwen_readme": finetuning.qwen,
        "ms_swift_examples": finetuning.swift,
        "unsloth_trl_notebooks": finetuning.unsloth,
        "trl_notebooks": finetuning.unsloth,
        "llama_factory_wiki": finetuning.unsloth,
        "torchtune": finetuning.torchtune,
        "colossalai": finetuning.colossalai,
        "arctic_alst": finetuning.arctic,
        "hf_docs_performance": finetuning.hf_docs,
        "deepspeed_blogs": finetuning.deepspeed,
        "bigscience": pretraining.bigscience,
        "flagperf": pretraining.flagperf,
        "internevo": pretraining.internevo,
        "xtuner": pretraining.internevo,
        "mlperf": pretraining.mlperf,
        "galvatron_profile": pretraining.galvatron,
        "google_gpu_recipes": pretraining.recipes,
        "nvidia_dgxc_benchmarking": pretraining.recipes,
        "nvidia_nemo_perf": pretraining.recipes,
        "megatron_bridge_skills": pretraining.recipes,
    }
)
