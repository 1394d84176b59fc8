"""What Megatron's optimizers hold: buffers with their padding, formats of the precision-aware one, dealt matrices."""

from math import lcm
from typing import Any

import pytest

from app import catalog
from app.errors import InvalidInput
from app.planning.architecture import Architecture, from_config
from app.planning.memory import MemoryEstimate, MemoryInputs, estimate
from app.planning.specs import Parallelism, Training

LLAMA_8B = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
ODD = from_config(
    {
        "model_type": "llama",
        "hidden_size": 40,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 128,
    }
)
LOW = {
    "compute": "bf16",
    "parameters": "bf16",
    "gradients": "bf16",
    "master_weights": "bf16",
    "optimizer_states": "bf16",
}


def ask(architecture: Architecture, training: dict[str, Any] | None = None, **layout: Any) -> MemoryEstimate:
    wanted = Training.model_validate({"framework": "megatron", "sequence_length": 8, **(training or {})})
    parallelism = Parallelism.model_validate({"data_parallel_size": 8, "zero_stage": 1, **layout})
    return estimate(MemoryInputs(architecture, wanted, parallelism, None, None, "detailed"))


def found(answer: MemoryEstimate, name: str) -> int:
    return sum(component.bytes for component in answer.components if component.name == name)


@pytest.mark.parametrize("ranks", [2, 8, 96])
def test_tensors_begin_at_64_elements_and_the_buffer_ends_where_ranks_divide_it(ranks: int) -> None:
    layer = [40 * 40] * 4 + [40 * 200] + [40 * 100] + [40] * 2
    tensors = [128 * 40, *layer, *layer, 40, 128 * 40]
    laid_out = sum(-(-elements // 64) * 64 for elements in tensors)
    multiple = lcm(ranks, 128)
    padding = -(-laid_out // multiple) * multiple - sum(tensors)
    answer = ask(ODD, data_parallel_size=ranks)
    assert answer.model.parameters == sum(tensors)
    assert found(answer, "gradients.padding") == 4 * padding
    assert found(answer, "weights.padding") == 2 * padding


def test_only_the_distributed_optimizer_pads() -> None:
    assert found(ask(ODD, zero_stage=0), "gradients.padding") == 0
    assert found(ask(ODD, {"framework": "nanotron"}), "gradients.padding") == 0
    assert found(ask(LLAMA_8B), "gradients.padding") == 0  # every size is a multiple already


def test_the_precision_aware_optimizer_reads_16_bit_gradients_as_they_are() -> None:
    wide = {**LOW, "master_weights": "fp32", "optimizer_states": "fp32"}
    low, plain = (ask(LLAMA_8B, {"precision": formats}) for formats in (LOW, wide))
    shard = -(-LLAMA_8B.parameters // 8)
    assert found(plain, "optimizer.fp32_gradients") == 4 * shard
    assert found(low, "optimizer.fp32_gradients") == 0
    assert low.per_gpu.weights_bytes + low.per_gpu.gradients_bytes == 4 * LLAMA_8B.parameters
    assert low.per_gpu.optimizer_states_bytes == (2 + 2 * 2) * shard
    apart = ask(LLAMA_8B, {"precision": {**LOW, "optimizer_states": "fp32", "second_moments": "fp8"}})
    assert apart.per_gpu.optimizer_states_bytes == (2 + 4 + 1) * shard


@pytest.mark.parametrize(
    ("training", "layout"), [({"optimizer": "sgd-momentum"}, {}), ({"optimizer": "adamw"}, {"zero_stage": 0})]
)
def test_low_precision_states_need_adam_in_the_distributed_optimizer(
    training: dict[str, Any], layout: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="precision-aware optimizer") as refused:
        ask(LLAMA_8B, {"precision": LOW, **training}, **layout)
    assert refused.value.errors[0].pointer == "/training/precision/master_weights"


def test_other_optimizers_have_one_format_for_both_moments() -> None:
    formats = {**LOW, "master_weights": None, "second_moments": "fp8"}
    for training in ({"precision": formats}, {"framework": "transformers", "precision": formats}):
        with pytest.raises(InvalidInput) as refused:
            ask(LLAMA_8B, training)
        assert refused.value.errors[0].pointer == "/training/precision/second_moments"


def test_a_second_moment_needs_adam_and_says_nothing_new_in_the_states_own_format() -> None:
    wide = {**LOW, "master_weights": "fp32", "optimizer_states": "fp32"}
    said = {**wide, "second_moments": "fp32"}
    assert ask(LLAMA_8B, {"precision": said}).per_gpu == ask(LLAMA_8B, {"precision": wide}).per_gpu
    with pytest.raises(InvalidInput, match="for Adam only") as refused:
        ask(LLAMA_8B, {"precision": said, "optimizer": "sgd"})
    assert refused.value.errors[0].pointer == "/training/precision/second_moments"


def test_a_rank_holds_a_matrix_of_muon_whole_however_many_ranks_there_are() -> None:
    def states(ranks: int) -> tuple[int, int]:
        answer = ask(LLAMA_8B, {"optimizer": "muon"}, data_parallel_size=ranks)
        return found(answer, "optimizer_states"), found(answer, "master_weights")

    largest = 2 * 4096 * 14336  # gate and up projection are one matrix
    rest = LLAMA_8B.embedding_parameters * 2 + 65 * 4096  # embedding, head and norms are Adam's
    hidden = LLAMA_8B.parameters - rest
    assert states(8) == (4 * -(-hidden // 8) + 8 * -(-rest // 8), 4 * -(-LLAMA_8B.parameters // 8))
    assert states(1024) == (4 * largest + 8 * -(-rest // 1024), 4 * largest)
