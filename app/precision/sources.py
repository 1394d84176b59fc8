"""Where the facts about number formats come from."""

from app.sources import Source

IEEE_754 = Source(
    title="IEEE 754-2019, Standard for Floating-Point Arithmetic",
    where="Section 3.4, table 3.5: parameters of binary16, binary32 and binary64",
    url="https://doi.org/10.1109/IEEESTD.2019.8766229",
)
TF32 = Source(
    title="NVIDIA A100 Tensor Core GPU Architecture",
    where="Third-generation tensor cores: TF32 has the range of FP32 and the 10 mantissa bits of FP16; FP64 and BF16",
    url="https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/nvidia-ampere-architecture-whitepaper.pdf",
)
BFLOAT16 = Source(
    title="Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training",
    where="Section 2: 1, 8 and 7 bits, the range of FP32; trained without loss scaling",
    url="https://arxiv.org/abs/1905.12322",
)
MIXED_PRECISION = Source(
    title="Micikevicius et al. 2017, Mixed Precision Training",
    where="Section 3: FP32 master weights, and loss scaling so that gradients do not underflow in FP16",
    url="https://arxiv.org/abs/1710.03740",
)
FP8 = Source(
    title="Micikevicius et al. 2022, FP8 Formats for Deep Learning",
    where="Table 1: E4M3 and E5M2; section 3: E4M3 for weights and activations, E5M2 for gradients, scaled per tensor",
    url="https://arxiv.org/abs/2209.05433",
)
OCP_FP8 = Source(
    title="OCP 8-bit Floating Point Specification (OFP8), revision 1.0",
    where="Section 5: encodings, and conversion with and without saturation",
    url="https://www.opencompute.org/documents/ocp-8-bit-floating-point-specification-ofp8-revision-1-0-2023-12-01-pdf-1",
)
FNUZ = Source(
    title="Noune et al. 2022, 8-bit Numerical Formats for Deep Neural Networks",
    where="Section 2: one more value of bias, no infinities, the code of -0 is NaN",
    url="https://arxiv.org/abs/2206.02915",
)
OCP_MX = Source(
    title="OCP Microscaling Formats (MX) Specification, version 1.0",
    where="Section 5: elements and the E8M0 scale of 32 of them; section 6.3: conversion from a wider format",
    url="https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf",
)
MX_TRAINING = Source(
    title="Rouhani et al. 2023, Microscaling Data Formats for Deep Learning",
    where="Section 4: training and fine-tuning with MXFP8, MXFP6 and MXFP4; algorithm 1 for the shared scale",
    url="https://arxiv.org/abs/2310.10537",
)
NVFP4 = Source(
    title="NVIDIA 2025, Pretraining Large Language Models with NVFP4",
    where="Section 2 and appendix B: E4M3 scales of 16 elements under an FP32 scale of the tensor; stochastic rounding",
    url="https://arxiv.org/abs/2509.25149",
)
QLORA = Source(
    title="Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs",
    where="Section 3: NF4 in blocks of 64, and scales quantized again in blocks of 256; appendix E: the 16 values",
    url="https://arxiv.org/abs/2305.14314",
)
BITSANDBYTES_NF4 = Source(
    title="bitsandbytes 4-bit quantization",
    where="bitsandbytes/functional.py, quantize_4bit(): compress_statistics takes the mean off the scales, then 8 bits",
    url="https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/functional.py",
)
DEEPSEEK = Source(
    title="DeepSeek-AI 2024, DeepSeek-V3 Technical Report",
    where="Section 3.3.2: E4M3 everywhere; scales for weights in 128 × 128 blocks and activations in 1 × 128 tiles",
    url="https://arxiv.org/abs/2412.19437",
)
INTEGERS = Source(
    title="Jacob et al. 2017, Quantization and Training of Neural Networks for Integer-Arithmetic-Only Inference",
    where="Section 2.1: real value = scale × (integer - zero point)",
    url="https://arxiv.org/abs/1712.05877",
)
GPTQ = Source(
    title="Frantar et al. 2022, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    where="Section 4: 4-bit weights with a scale and a zero point for each group of 128",
    url="https://arxiv.org/abs/2210.17323",
)
EIGHT_BIT_OPTIMIZERS = Source(
    title="Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization",
    where="Section 2: 8-bit states with a scale for each block",
    url="https://arxiv.org/abs/2110.02861",
)
CUDA_ARITHMETIC = Source(
    title="CUDA C++ Programming Guide, compute capabilities",
    where="Throughput of native arithmetic instructions by compute capability; input types of the tensor cores",
    url="https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions",
)
PTX_MMA = Source(
    title="PTX ISA, matrix multiply-accumulate",
    where="mma, wgmma.mma_async and tcgen05.mma: operand types by target architecture, and kinds with block scaling",
    url="https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions",
)
AMD_MATRIX_CORES = Source(
    title="AMD lab notes: AMD matrix cores",
    where="Operations per clock and compute unit of MI100 and MI250X, for FP64, FP32, FP16, BF16 and INT8",
    url="https://gpuopen.com/learn/amd-lab-notes/amd-lab-notes-matrix-cores-readme/",
)
CDNA3 = Source(
    title="AMD Instinct MI300 Instruction Set Architecture (CDNA3)",
    where="Matrix arithmetic instructions with XF32 operands, and with FP8 and BF8, which are FNUZ",
    url="https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/instruction-set-architectures/amd-instinct-mi300-cdna3-instruction-set-architecture.pdf",
)
CDNA4 = Source(
    title="AMD CDNA 4 Instruction Set Architecture",
    where="Matrix arithmetic instructions with OCP FP8, FP6 and FP4 operands, with and without block scales",
    url="https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/instruction-set-architectures/amd-instinct-cdna4-instruction-set-architecture.pdf",
)
