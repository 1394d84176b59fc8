"""Where each formula comes from. A memory component cannot be built without one of these."""

from app.sources import Source

TENSOR_SIZE = Source(
    title="PyTorch tensor storage",
    where="numel() × element_size(), summed over the tensors of the model class",
    url="https://docs.pytorch.org/docs/stable/tensor_attributes.html",
)
AUTOGRAD = Source(
    title="PyTorch autograd mechanics",
    where="Saved tensors: what each operator keeps between forward and backward",
    url="https://docs.pytorch.org/docs/stable/notes/autograd.html#saved-tensors",
)
AUTOCAST = Source(
    title="PyTorch automatic mixed precision",
    where="torch.autocast: weights stay FP32, each is cast once per forward and the cast is kept for backward",
    url="https://docs.pytorch.org/docs/stable/amp.html",
)
CHECKPOINT = Source(
    title="Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost",
    where="Section 3: keep each block's input, recompute the rest in backward",
    url="https://arxiv.org/abs/1604.06174",
)
MEGATRON_ACTIVATIONS = Source(
    title="Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models",
    where="Section 4, equation 1, operator by operator, with gated MLPs, grouped heads and fused kernels",
    url="https://arxiv.org/abs/2205.05198",
)
FLASH_ATTENTION = Source(
    title="Dao et al. 2022, FlashAttention",
    where="Algorithm 1: query, key, value, output and the log-sum-exp are kept; the score matrix never exists",
    url="https://arxiv.org/abs/2205.14135",
)
PACKING = Source(
    title="Padding-free training in transformers",
    where=(
        "masking_utils.py, find_packed_sequence_indices() and sdpa_mask(): a mask of all tokens of a sequence by all, "
        "which integrations/sdpa_attention.py hands to the kernel with copies of grouped heads"
    ),
    url="https://huggingface.co/docs/transformers/main/padding_free",
)
ZERO = Source(
    title="Rajbhandari et al. 2019, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
    where="Section 5, figure 1: 2Ψ + 2Ψ + KΨ, and what each stage divides by the data-parallel degree",
    url="https://arxiv.org/abs/1910.02054",
)
DEEPSPEED_CONFIG = Source(
    title="DeepSpeed ZeRO configuration",
    where=("deepspeed/runtime/zero/config.py: reduce_bucket_size, allocated whole"),
    url="https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/zero/config.py",
)
DEEPSPEED_LIVE = Source(
    title="DeepSpeed ZeRO-3 parameter coordinator",
    where=(
        "deepspeed/runtime/zero/partitioned_param_coordinator.py, fetch_sub_module(): every module prefetches up to "
        "stage3_max_live_parameters; __params_to_release(): stage3_max_reuse_distance"
    ),
    url="https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/zero/partitioned_param_coordinator.py",
)
DEEPSPEED_PERSISTENCE = Source(
    title="DeepSpeed ZeRO-3 persistent parameters",
    where=(
        "deepspeed/runtime/zero/parameter_offload.py, mark_persistent_parameters(): not larger than "
        "stage3_param_persistence_threshold; stage3.py, _post_step() gathers them again"
    ),
    url="https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/zero/parameter_offload.py",
)
ZERO_PLUS_PLUS = Source(
    title="Wang et al. 2023, ZeRO++: Extremely Efficient Collective Communication for Giant Model Training",
    where=(
        "Section 3.2, hierarchical partitioning (hpZ); partition_parameters.py, _partition_param_sec(); stage3.py, "
        "invalidate_secondary_tensor() at the end of the step"
    ),
    url="https://arxiv.org/abs/2306.10209",
)
DEEPSPEED_STEP = Source(
    title="DeepSpeed ZeRO optimizer step",
    where="deepspeed/runtime/zero/stage_1_and_2.py, step(): FP32 gradients of the partition are made at the update",
    url="https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/zero/stage_1_and_2.py",
)
DDP = Source(
    title="PyTorch DistributedDataParallel",
    where="gradient_as_bucket_view=False (the default): communication buckets hold a second copy of all gradients",
    url="https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html",
)
FSDP = Source(
    title="PyTorch FSDP2",
    where=(
        "torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py: unsharded parameters, prefetch and reduce-scatter "
        "input"
    ),
    url="https://github.com/pytorch/pytorch/blob/main/torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py",
)
MEGATRON_OPTIMIZER = Source(
    title="Megatron-LM distributed optimizer",
    where="docs/user-guide/features/dist_optimizer.md: bytes per parameter by data type, 6 + 12/d for BF16",
    url="https://github.com/NVIDIA/Megatron-LM/blob/main/docs/user-guide/features/dist_optimizer.md",
)
MEGATRON_BUFFERS = Source(
    title="Megatron-Core parameter layout",
    where=(
        "megatron/core/optimizer/param_layout.py: pad_param_start() to 64 elements, bucket_end_divisor() to "
        "lcm(data-parallel ranks, 128)"
    ),
    url="https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/optimizer/param_layout.py",
)
MEGATRON_LAYER_WISE = Source(
    title="Megatron-Core layer-wise distributed optimizer",
    where=(
        "megatron/core/optimizer/layer_wise_optimizer.py: whole matrices are dealt out to data-parallel ranks, with "
        "their FP32 weights; the distributed optimizer cuts everything else"
    ),
    url="https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/optimizer/layer_wise_optimizer.py",
)
TORCH_OPTIM = Source(
    title="PyTorch optimizers",
    where="torch/optim: the state of each parameter, and the scratch that foreach makes in step()",
    url="https://docs.pytorch.org/docs/stable/optim.html",
)
LION = Source(
    title="Chen et al. 2023, Symbolic Discovery of Optimization Algorithms",
    where="Algorithm 2: one momentum per parameter",
    url="https://arxiv.org/abs/2302.06675",
)
BITSANDBYTES = Source(
    title="Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization",
    where=(
        "bitsandbytes/optim/optimizer.py, init_state(): one byte and 4/256 of an FP32 maximum per element and state; "
        "FP32 below min_8bit_size 4096 and, under Hugging Face's Trainer, in embeddings; paged from 100,000 elements on"
    ),
    url="https://arxiv.org/abs/2110.02861",
)
TORCHAO_OPTIM = Source(
    title="torchao low-bit optimizers",
    where="torchao/optim/adam.py, _new_buffer(): blocks of 256 (8 bit) or 128 (4 bit), from 4096 elements on",
    url="https://github.com/pytorch/ao/tree/main/torchao/optim",
)
ADAFACTOR = Source(
    title="Shazeer and Stern 2018, Adafactor",
    where="Section 3, as transformers/optimization.py runs it: FP32 row and column means, no first moment",
    url="https://arxiv.org/abs/1804.04235",
)
CAME = Source(
    title="Luo et al. 2023, CAME: Confidence-guided Adaptive Memory Efficient Optimization",
    where="Algorithm 2: a first moment, and factors of the second moment and of the instability",
    url="https://arxiv.org/abs/2307.02047",
)
ADAM_MINI = Source(
    title="Zhang et al. 2024, Adam-mini: Use Fewer Learning Rates To Gain More",
    where="Algorithm 1: a first moment, and one second moment per row of a matrix",
    url="https://arxiv.org/abs/2406.16793",
)
ADEMAMIX = Source(
    title="Pagliardini et al. 2024, The AdEMAMix Optimizer",
    where="Algorithm 1: a fast and a slow first moment and a second moment",
    url="https://arxiv.org/abs/2409.03137",
)
SOPHIA = Source(
    title="Liu et al. 2023, Sophia: A Scalable Stochastic Second-order Optimizer",
    where="Algorithm 3: a first moment and the diagonal of the Hessian",
    url="https://arxiv.org/abs/2305.14342",
)
SHAMPOO = Source(
    title="Shi et al. 2023, A Distributed Data-Parallel PyTorch Implementation of Shampoo",
    where=(
        "Section 3: for each block up to max_preconditioner_dim 1024 two Kronecker factors and their inverse roots; "
        "filtered gradient and Adam grafting for each element"
    ),
    url="https://arxiv.org/abs/2309.06497",
)
SOAP = Source(
    title="Vyas et al. 2024, SOAP: Improving and Stabilizing Shampoo using Adam",
    where="Algorithm 3: Adam's moments; for each side up to max_precond_dim 10000 a covariance and its eigenvectors",
    url="https://arxiv.org/abs/2409.11321",
)
MUON = Source(
    title="Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks",
    where="torch/optim/_muon.py: a momentum per hidden matrix, Newton-Schulz in BF16; AdamW for everything else",
    url="https://kellerjordan.github.io/posts/muon/",
)
GALORE = Source(
    title="Zhao et al. 2024, GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
    where="Algorithm 2 and galore_torch/galore_projector.py: Adam on projected gradients, one projection per matrix",
    url="https://arxiv.org/abs/2403.03507",
)
LOMO = Source(
    title="Lv et al. 2023, Full Parameter Fine-tuning for Large Language Models with Limited Resources",
    where="Algorithm 1 and lomo_optim/lomo.py: each weight is updated, in FP32 copies, when backward reaches it",
    url="https://arxiv.org/abs/2306.09782",
)
BADAM = Source(
    title="Luo et al. 2024, BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models",
    where="Algorithm 1 and badam/block_optim.py: FP32 weights, gradients and Adam's moments of one block at a time",
    url="https://arxiv.org/abs/2404.02827",
)
CROSS_ENTROPY = Source(
    title="PyTorch cross entropy as Hugging Face calls it",
    where=(
        "transformers loss_utils.py: logits to FP32, log_softmax kept, its gradient and the loss gradient in backward"
    ),
    url="https://github.com/huggingface/transformers/blob/main/src/transformers/loss/loss_utils.py",
)
FUSED_CROSS_ENTROPY = Source(
    title="Hsu et al. 2024, Liger Kernel",
    where="Section 3.2, FusedLinearCrossEntropy: the hidden states are cut into chunks of about hidden/vocabulary",
    url="https://arxiv.org/abs/2410.10989",
)
LIGER = Source(
    title="Liger Kernel 0.8",
    where="src/liger_kernel/ops/rms_norm.py, swiglu.py and geglu.py (what each saves, gradients written in place); "
    "transformers/monkey_patch.py (which model types)",
    url="https://github.com/linkedin/Liger-Kernel",
)
CUDA_CONTEXT = Source(
    title="CUDA context on data-centre GPUs, driver 590",
    where="nvidia-smi captures: 518 MiB at 132 SMs, 248 at 60, 146 at 32, which is 26 + 3.73 MiB per SM",
    url="https://docs.nvidia.com/cuda/cuda-c-best-practices-guide/",
)
NARROW_CUDA_CONTEXT = Source(
    title="CUDA context on GPUs with 48 warps per SM",
    where=(
        "NVML before and after a context exists: 555 MiB at 188 SMs and 107 at 34 (llama.cpp #23604), 426 at 142 "
        "(unsloth-zoo #1053), 256 at 82 (InvokeAI #9413), which is 3.05 MiB per SM"
    ),
    url="https://github.com/ggml-org/llama.cpp/pull/23604",
)
CUBLAS_WORKSPACE = Source(
    title="PyTorch cuBLAS workspaces",
    where="CUBLAS_WORKSPACE_CONFIG: 4096 KiB × 2 plus 16 KiB × 8 per handle and stream, 32 MiB on Hopper",
    url="https://docs.pytorch.org/docs/stable/notes/cuda.html#cublas-workspaces",
)
NCCL_BUFFERS = Source(
    title="NCCL communicator buffers",
    where="4 MiB (Simple) + 4.6875 MiB (LL128) + 0.5 MiB (LL) per channel and connection",
    url="https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-buffsize",
)
ALLOCATOR = Source(
    title="PyTorch CUDA caching allocator",
    where="reserved over allocated: 1.05 in the median of Megatron runs on B200 (SimuMax validation)",
    url="https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management",
)
RULE_OF_THUMB = Source(
    title="The 24 bytes rule",
    where=(
        "FP32 training: 4 weights + 8 Adam states + 4 gradients + 8 activations and temporary memory, six times the "
        "weights"
    ),
    url="https://huggingface.co/docs/transformers/model_memory_anatomy",
)
NANOTRON = Source(
    title="nanotron training loop",
    where=(
        "src/nanotron/optim/gradient_accumulator.py (FP32 buffer of all parameters), optim/zero.py (slices), "
        "parallel/tensor_parallel/functional.py (MemoryBuffer, _ShardedCrossEntropy), models/llama.py (flash-attn's "
        "RotaryEmbedding rotates queries in place)"
    ),
    url="https://github.com/huggingface/nanotron/tree/main/src/nanotron",
)
MEGATRON_FUSION = Source(
    title="Transformer Engine, gradient accumulation fusion",
    where="transformer_engine/pytorch/module/base.py, get_dummy_wgrad(): one tensor for each shape, never freed",
    url="https://github.com/NVIDIA/TransformerEngine/blob/main/transformer_engine/pytorch/module/base.py",
)
PIPELINE = Source(
    title="Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
    where="Section 2.2: activations and their gradients travel between neighbouring stages",
    url="https://arxiv.org/abs/2104.04473",
)
RING_ATTENTION = Source(
    title="Liu et al. 2023, Ring Attention with Blockwise Transformers for Near-Infinite Context",
    where="Section 3: keys and values of the next block are received while those of this one are used",
    url="https://arxiv.org/abs/2310.01889",
)
TRAINING_FLOPS = Source(
    title="Kaplan et al. 2020, Scaling Laws for Neural Language Models",
    where="Section 2.1: 2 operations per parameter and token forward, twice that backward, so C ≈ 6ND",
    url="https://arxiv.org/abs/2001.08361",
)
FLOP_COUNTER = Source(
    title="PyTorch FLOP counter",
    where="torch/utils/flop_counter.py: two per multiply-add of a matrix product; each product has two in backward",
    url="https://github.com/pytorch/pytorch/blob/main/torch/utils/flop_counter.py",
)
KAPLAN = Source(
    title="Kaplan et al. 2020, Scaling Laws for Neural Language Models",
    where="Table 6 and appendix A (N_e, p_N), equation 5.5 (C_min = C / (1 + B / B_crit)), equation 1.3 (L of C_min)",
    url="https://arxiv.org/abs/2001.08361",
)
CHINCHILLA_ENVELOPE = Source(
    title="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models",
    where="Approach 1 (section 3.1): table 2 (exponent 0.50) and table 3 (sizes, FLOPs and tokens)",
    url="https://arxiv.org/abs/2203.15556",
)
CHINCHILLA_ISOFLOP = Source(
    title="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models",
    where="Approach 2 (section 3.2): table 2 (exponent 0.49) and table A3 (sizes, FLOPs and tokens)",
    url="https://arxiv.org/abs/2203.15556",
)
CHINCHILLA_PARAMETRIC = Source(
    title="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models",
    where="Approach 3 (section 3.3): equations 2, 4 and 10",
    url="https://arxiv.org/abs/2203.15556",
)
CHINCHILLA_REPLICATION = Source(
    title="Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt",
    where="The refit of approach 3 on the runs of Hoffmann et al.'s figure 4; their constants before rounding",
    url="https://arxiv.org/abs/2404.10102",
)
DATA_CONSTRAINED = Source(
    title="Muennighoff et al. 2023, Scaling Data-Constrained Language Models",
    where="Equations 5 and 6 (what repeated tokens and excess parameters are worth), appendices A, B (fit on C4)",
    url="https://arxiv.org/abs/2305.16264",
)
DEEPSEEK_SCALING = Source(
    title="DeepSeek-AI 2024, DeepSeek LLM: Scaling Open-Source Language Models with Longtermism",
    where="Section 3.2, equation 4: non-embedding operations per token M and tokens D, with C = MD",
    url="https://arxiv.org/abs/2401.02954",
)
LLAMA_3_SCALING = Source(
    title="Llama Team 2024, The Llama 3 Herd of Models",
    where="Section 3.2.1: compute-optimal training tokens A·C^α with (α, A) = (0.53, 0.29)",
    url="https://arxiv.org/abs/2407.21783",
)
EMBEDDING_PARAMETERS = Source(
    title="Pearce and Song 2024, Reconciling Kaplan and Chinchilla Scaling Laws",
    where="N_T = N + 47491·N^(1/3): embeddings of Chinchilla's model family, with a vocabulary of 32,000",
    url="https://arxiv.org/abs/2406.12907",
)
INFERENCE_AWARE = Source(
    title="Sardana et al. 2024, Beyond Chinchilla-Optimal: Accounting for Inference in Language Model Scaling Laws",
    where="Equation 3: the least 6·N·D + 2·N·D_inference for a given loss",
    url="https://arxiv.org/abs/2401.00448",
)
CHARACTERS_PER_TOKEN = Source(
    title="Llama Team 2024, The Llama 3 Herd of Models",
    where="Section 3.2: 3.94 characters per token of English with 128K tokens, 3.17 with Llama 2's 32K",
    url="https://arxiv.org/abs/2407.21783",
)
CURATION = Source(
    title="Li et al. 2024, DataComp-LM: In search of the next generation of training sets for language models",
    where="Of 240 trillion tokens of crawled text, 3.8 trillion are left: 1.6 %, inside the usual 1 to 3 %",
    url="https://arxiv.org/abs/2406.11794",
)
