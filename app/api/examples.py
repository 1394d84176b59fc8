"""Requests shown in the OpenAPI document. A test sends each of them; all work as they stand."""

from typing import Any

LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}

EIGHT_H100S: dict[str, Any] = {
    "model": {"id": "meta-llama/Llama-3.1-8B"},
    "training": {"precision": "bf16-mixed", "micro_batch_size": 1, "sequence_length": 4096},
    "parallelism": {"data_parallel_size": 8, "zero_stage": 3},
    "hardware": {"gpu": "h100-sxm-80gb", "gpus_per_node": 8, "nodes": 1},
}

MEMORY: dict[str, Any] = {
    "sharded": {"summary": "Llama-3.1-8B, fully sharded over eight H100s", "value": EIGHT_H100S},
    "config": {
        "summary": "Any config.json, on one GPU, with recomputation",
        "value": {
            "model": {"config": LLAMA_CONFIG},
            "training": {"micro_batch_size": 2, "sequence_length": 2048, "recompute": "full"},
            "hardware": {"gpu": "h200-sxm-141gb"},
        },
    },
    "zero": {
        "summary": "The ZeRO paper's 7.5 billion parameters on 64 GPUs",
        "value": {
            "model": {"parameters": 7_500_000_000},
            "training": {"framework": "deepspeed", "precision": "fp16-mixed"},
            "parallelism": {"data_parallel_size": 64, "zero_stage": 2},
        },
    },
    "layout": {
        "summary": "Llama-3.1-70B under Megatron: tensor, sequence and pipeline parallel, sharded optimizer",
        "value": {
            "model": {"id": "meta-llama/Llama-3.1-70B"},
            "training": {
                "framework": "megatron",
                "micro_batch_size": 1,
                "global_batch_size": 256,
                "sequence_length": 8192,
                "recompute": "selective",
            },
            "parallelism": {
                "tensor_parallel_size": 8,
                "sequence_parallel": True,
                "pipeline_parallel_size": 4,
                "virtual_pipeline_size": 5,
                "data_parallel_size": 4,
                "zero_stage": 1,
            },
            "hardware": {"gpu": "h100-sxm-80gb", "gpus_per_node": 8, "nodes": 16},
        },
    },
    "qlora": {
        "summary": "QLoRA of a 14-billion-parameter model on one 24 GB card",
        "value": {
            "model": {"id": "Qwen/Qwen2.5-14B"},
            "training": {
                "method": "qlora",
                "lora": {"rank": 16, "target_modules": "all-linear", "base_format": "nf4-double"},
                "optimizer": "paged-adamw-8bit",
                "micro_batch_size": 1,
                "sequence_length": 2048,
                "recompute": "full",
            },
            "hardware": {"gpu": "rtx-4090"},
        },
    },
    "experts": {
        "summary": "Mixtral-8x7B with expert parallelism",
        "value": {
            "model": {"id": "mistralai/Mixtral-8x7B-v0.1"},
            "training": {
                "framework": "megatron",
                "micro_batch_size": 1,
                "global_batch_size": 128,
                "sequence_length": 4096,
                "expert_load_percent": 125,
            },
            "parallelism": {
                "expert_parallel_size": 8,
                "pipeline_parallel_size": 4,
                "data_parallel_size": 8,
                "zero_stage": 1,
            },
            "hardware": {"gpu": "h100-sxm-80gb", "gpus_per_node": 8, "nodes": 4},
        },
    },
    "offload": {
        "summary": "ZeRO-3 with optimizer and weights in host memory",
        "value": {
            "model": {"id": "Qwen/Qwen2.5-32B"},
            "training": {"framework": "deepspeed", "sequence_length": 2048, "recompute": "full"},
            "parallelism": {"data_parallel_size": 4, "zero_stage": 3, "offload": "optimizer+parameters"},
            "hardware": {"gpu": "a100-sxm-80gb", "gpus_per_node": 4, "nodes": 1},
        },
    },
    "rule_of_thumb": {
        "summary": "24 bytes a parameter",
        "value": {"model": {"parameters": 1_000_000_000}, "estimator": "rule_of_thumb"},
    },
}

INSPECT: dict[str, Any] = {
    "id": {"summary": "A model of the catalogue", "value": {"model": {"id": "Qwen/Qwen2.5-7B"}}},
    "config": {"summary": "A config.json", "value": {"model": {"config": LLAMA_CONFIG}}},
    "experts": {
        "summary": "A mixture of experts: what a token meets beside what is held",
        "value": {"model": {"id": "mistralai/Mixtral-8x7B-v0.1"}},
    },
    "encoder_decoder": {
        "summary": "An encoder and a decoder, whose embeddings are one tensor",
        "value": {"model": {"id": "google-t5/t5-base"}},
    },
    "adapters": {
        "summary": "Adapters of rank 16 beside all linear layers",
        "value": {"model": {"id": "Qwen/Qwen2.5-7B"}, "lora": {"rank": 16, "target_modules": "all-linear"}},
    },
}

CONVERT: dict[str, Any] = {
    "pi": {
        "summary": "What π is in 16 and 8 bits",
        "value": {"values": [3.141592653589793], "from": "fp32", "to": ["fp16", "bf16", "int8"]},
    },
    "edges": {
        "summary": "Overflow, the subnormal range, and what JSON has no number for",
        "value": {
            "values": [65504, 65520, 1e-7, "5.96e-8", "0x1p-25", "-0", "NaN", "-Infinity"],
            "from": "fp64",
            "to": ["fp16", "bf16", "fp8_e4m3", "fp8_e5m2"],
        },
    },
    "saturated": {
        "summary": "FP8 as training libraries make it: scaled to the largest magnitude, saturated",
        "value": {
            "values": [0.02, -1.5, 900.0, 0.0003],
            "from": "bf16",
            "to": ["fp8_e4m3", "fp8_e5m2"],
            "scheme": {"kind": "symmetric", "scale_floats": True, "saturate": True},
        },
    },
    "channels": {
        "summary": "A 2 × 4 weight in 4-bit integers, with a scale and a zero point for each output",
        "value": {
            "values": [0.1, -0.2, 0.3, 0.05, 8.0, 2.5, 4.0, 1.0],
            "from": "fp32",
            "to": ["int4", "uint4"],
            "scheme": {"kind": "affine", "granularity": "channel", "shape": [2, 4]},
        },
    },
    "blocks": {
        "summary": "Block formats side by side",
        "value": {
            "values": [0.5, -1.25, 3.0, 0.01, 0.0, 6.5, -0.75, 2.0],
            "from": "bf16",
            "to": ["mxfp8", "mxfp4", "nvfp4", "nf4", "nf4-double"],
        },
    },
}

MODEL_CONVERSIONS: dict[str, Any] = {
    "blocks": {
        "summary": "Llama-3.1-8B from BF16 to MXFP4",
        "value": {"model": {"id": "meta-llama/Llama-3.1-8B"}, "from": "bf16", "to": "mxfp4"},
    },
    "tiles": {
        "summary": "DeepSeek-V3 to its own FP8, in tiles of 128 × 128",
        "value": {
            "model": {"id": "deepseek-ai/DeepSeek-V3"},
            "from": "bf16",
            "to": "fp8_e4m3_128x128",
            "keep": ["word_embedding", "norm", "router", "lm_head"],
        },
    },
    "integers": {
        "summary": "4-bit groups of 64, with the head as well",
        "value": {
            "model": {"id": "Qwen/Qwen2.5-7B"},
            "from": "bf16",
            "to": "int4",
            "keep": ["word_embedding", "norm"],
            "scheme": {"kind": "symmetric", "granularity": "block", "block_size": 64},
        },
    },
    "half": {
        "summary": "FP32 to FP16: what is at risk",
        "value": {"model": {"id": "openai-community/gpt2"}, "from": "fp32", "to": "fp16"},
    },
}

SCALING: dict[str, Any] = {
    "gopher": {"summary": "Gopher's budget, in operations", "value": {"flops": 5.76e23}},
    "gpu_hours": {
        "summary": "A hundred thousand hours of H100s, by Chinchilla's first approach",
        "value": {"gpu_hours": 100_000.0, "gpu": "h100-sxm-80gb", "mfu": 0.4, "law": "chinchilla-1"},
    },
    "dollars": {
        "summary": "A million dollars, for a model that will serve ten trillion tokens",
        "value": {
            "cost_usd": 1_000_000.0,
            "price_per_gpu_hour_usd": 2.5,
            "gpu": "h100-sxm-80gb",
            "mfu": 0.4,
            "inference_tokens": 10_000_000_000_000,
        },
    },
    "placed": {
        "summary": "A model of the catalogue against the laws, with the tokens of its card",
        "value": {"model": {"id": "meta-llama/Llama-3.1-8B"}},
    },
    "too_little_text": {
        "summary": "Ten thousand petaFLOP/s-days, but only 200 billion different tokens",
        "value": {"petaflop_s_days": 10_000.0, "unique_tokens": 200_000_000_000},
    },
}
