"""Which format each part of the training state has: what a preset means in each framework, and what none can run."""

from app.errors import InvalidInput
from app.planning.refusals import OWN_OPTIMIZERS
from app.planning.specs import FloatFormat, Framework, Parallelism, Precision, Training


def formats_of(training: Training, parallelism: Parallelism, assumptions: list[str], *, old: bool) -> Precision:
    """The format of each part, by the preset or as it was sent; what was decided is added to `assumptions`. `old` GPUs
    have no BF16 units. Raises InvalidInput for what the framework cannot run.
    """
    preset = training.precision
    if isinstance(preset, Precision):
        _check_precision(preset, training.framework)
        _check_precision_aware(preset, training, parallelism)
        return preset
    if preset is None:
        preset = "fp16-mixed" if old else "bf16-mixed"
        assumptions.append(f"precision: {preset}")
    if preset == "fp8-mixed":
        preset = "bf16-mixed"
    if preset in ("int8", "fp8"):
        raise InvalidInput.at(
            "/training/precision",
            f"{preset} is a row of the rule of thumb; the detailed estimator takes "
            "bf16-mixed, fp16-mixed, fp32, bf16 or fp16",
        )
    if preset == "fp32" or preset == "bf16" or preset == "fp16":  # noqa: PLR1714 - mypy narrows by ==
        if preset != "fp32" and training.framework in ("deepspeed", "megatron"):
            assumptions.append(f"precision {preset}: everything in {preset}, without the FP32 master weights of a mix")
        return Precision(compute=preset, parameters=preset, gradients=preset, optimizer_states=preset)
    half: FloatFormat = "bf16" if preset == "bf16-mixed" else "fp16"
    if training.framework == "nanotron":
        return Precision(compute=half, parameters=half, gradients="fp32", master_weights="fp32")
    if training.framework == "deepspeed":
        alone = half == "bf16" and parallelism.zero_stage == 0
        wide: FloatFormat = "fp32" if alone else half  # DeepSpeed's BF16_Optimizer accumulates in FP32
        return Precision(compute=half, parameters=half, gradients=wide, master_weights="fp32")
    if training.framework == "megatron":
        gradients: FloatFormat = "fp32" if half == "bf16" else "fp16"  # FP32 copies of FP16 ones are made at the step
        return Precision(compute=half, parameters=half, gradients=gradients, master_weights="fp32")
    return Precision(compute=half, parameters="fp32", gradients="fp32")


def _check_precision(precision: Precision, framework: Framework) -> None:
    """Refuses combinations of formats that the framework cannot run."""
    own_optimizer = framework in OWN_OPTIMIZERS
    weights = (precision.compute,) if framework in ("megatron", "nanotron") else (precision.compute, "fp32")
    gradients = (precision.parameters, "fp32") if own_optimizer else (precision.parameters,)
    if precision.parameters not in weights:
        raise InvalidInput.at(
            "/training/precision/parameters",
            f"{framework} cannot compute in {precision.compute} with weights in {precision.parameters}; "
            f"keep them in {' or '.join(dict.fromkeys(weights))}",
        )
    if precision.gradients not in gradients:
        raise InvalidInput.at(
            "/training/precision/gradients",
            f"{framework} keeps gradients of {precision.parameters} weights in {' or '.join(dict.fromkeys(gradients))}",
        )
    if precision.second_moments is not None and (framework != "megatron" or precision.master_weights is None):
        raise InvalidInput.at(
            "/training/precision/second_moments",
            "a format of the second moment alone is what Megatron's precision-aware optimizer has, beside master "
            "weights; leave it out",
        )
    if precision.master_weights and not own_optimizer:
        raise InvalidInput.at(
            "/training/precision/master_weights", f"{framework}'s optimizers keep no master weights; leave them out"
        )
    if precision.master_weights and precision.parameters == "fp32":
        raise InvalidInput.at("/training/precision/master_weights", "the weights are FP32 already; leave them out")


def is_precision_aware(precision: Precision) -> bool:
    """Whether these formats need Megatron's precision-aware optimizer: master weights or states in less than FP32."""
    formats = {precision.master_weights, precision.optimizer_states, precision.second_moments or "fp32"}
    return precision.master_weights is not None and formats != {"fp32"}


def _check_precision_aware(precision: Precision, training: Training, parallelism: Parallelism) -> None:
    if training.framework != "megatron":
        return
    if precision.second_moments is not None and training.optimizer not in ("adam", "adamw"):
        raise InvalidInput.at(
            "/training/precision/second_moments",
            f"Megatron keeps the second moment apart for Adam only, and the optimizer is {training.optimizer}; leave "
            "it out",
        )
    if not is_precision_aware(precision):
        return
    fields = ("master_weights", "optimizer_states", "second_moments")
    field = next(name for name in fields if getattr(precision, name) not in ("fp32", None))
    if training.optimizer not in ("adam", "adamw") or parallelism.zero_stage == 0:
        raise InvalidInput.at(
            f"/training/precision/{field}",
            "Megatron keeps master weights and states in less than FP32 with its precision-aware optimizer only, which "
            "is Adam in the distributed optimizer; set optimizer: adam and zero_stage 1, or keep both in fp32",
        )
