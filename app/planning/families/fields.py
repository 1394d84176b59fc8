"""Reading a `config.json`: every field is looked at exactly once, checked, and nothing that could change a count is
passed over.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from app.errors import Fault, UnsupportedModel
from app.planning.modules import ACTIVATIONS, Activation

LARGEST_DIMENSION = 2**24
LARGEST_LAYER_COUNT = 10_000
LARGEST_EXPERT_COUNT = 100_000

_NEUTRAL = frozenset(
    """
    architectures auto_map model_type torch_dtype dtype transformers_version _name_or_path use_cache return_dict
    output_attentions
    output_hidden_states initializer_range bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens bad_words_ids
    task_specific_params finetuning_task id2label label2id problem_type torchscript is_decoder is_encoder_decoder
    gradient_checkpointing chunk_size_feed_forward pruned_heads tokenizer_class prefix min_length max_length do_sample
    temperature top_k top_p num_beams repetition_penalty length_penalty no_repeat_ngram_size early_stopping
    num_return_sequences return_dict_in_generate remove_invalid_values typical_p output_scores diversity_penalty
    exponential_decay_length_penalty encoder_no_repeat_ngram_size num_beam_groups unsloth_version unsloth_fixed
    _attn_implementation _attn_implementation_autoset attn_implementation pretraining_tp rope_theta rope_scaling
    rope_parameters
    reorder_and_upcast_attn scale_attn_by_inverse_layer_idx scale_attn_weights summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj n_ctx max_window_layers
    use_sliding_window
    sliding_window layer_types rms_norm_eps layer_norm_epsilon layer_norm_eps
    """.split()  # noqa: SIM905 - a hundred quoted names would hide the names
)
"""Fields that change neither a count nor what is kept for backward in the families served."""

_MAY_CHANGE_A_COUNT = re.compile(
    r"(^|_)(num|n|d|dim|size|width|rank|layers?|heads?|experts?|bias|norms?|tie|tied|shared|adapter|quantization|cross|embd?|"
    r"embeddings?|moe|lora|mlp|ffn|hidden|vocab|map)(_|$)"
)


class Fields:
    """The fields of one `config.json`, read with the defaults of its class and checked as they are read.

    Raises UnsupportedModel with the JSON pointer of the field, under `pointer` in the request.
    """

    def __init__(self, config: Mapping[str, Any], pointer: str, family: str) -> None:
        self._config = config
        self._pointer = pointer
        self._family = family
        self._read: set[str] = set()
        self._sections: dict[str, Fields] = {}

    def refuse(self, name: str, detail: str) -> UnsupportedModel:
        """The error for one field; `detail` is completed with what to send instead."""
        return UnsupportedModel.at(f"{self._pointer}/{name.replace('~', '~0').replace('/', '~1')}", detail)

    def get(self, name: str) -> Any:
        """A field's value; None when it is missing or null, which Hugging Face treats alike."""
        self._read.add(name)
        return self._config.get(name)

    def section(self, name: str, default: Mapping[str, Any] = MappingProxyType({}), *, fill: bool = False) -> "Fields":
        """The fields of the config nested under `name`, which `finish` looks at too; `default` when it is missing, or
        with `fill` for what it leaves out.
        """
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(name, f"{name} must be an object, not {_shown(value)}")
        content = default if value is None else {**default, **value} if fill else value
        nested = Fields(content, f"{self._pointer}/{name}", self._family)
        self._sections[name] = nested
        return nested

    def count(self, name: str, default: int | None, *, most: int = LARGEST_DIMENSION) -> int:
        """A whole number from 1 to `most`; the class's default when missing."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise self.refuse(name, f"{name} is missing, and {self._family} has no default for it")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.refuse(name, f"{name} must be a whole number from 1 to {most:,}, not {_shown(value)}")
        return value

    def whole(self, name: str, default: int, *, most: int = LARGEST_LAYER_COUNT) -> int:
        """A whole number from 0 to `most`; the class's default when missing."""
        value = self.get(name)
        return (
            default if value is None else 0 if value == 0 and value is not False else self.count(name, None, most=most)
        )

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; empty when missing."""
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) for item in value
        ):
            raise self.refuse(name, f"{name} must be a list of whole numbers, not {_shown(value)}")
        return tuple(value)

    def is_null(self, name: str) -> bool:
        """Whether the file says null, where that means something else than leaving the field out."""
        self._read.add(name)
        return name in self._config and self._config[name] is None

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean; the class's default when missing."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, f"{name} must be true or false, not {_shown(value)}")
        return value

    def probability(self, name: str, *, default: float) -> float:
        """A number from 0 to 1; the class's default when missing."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise self.refuse(name, f"{name} must be a number from 0 to 1, not {_shown(value)}")
        return float(value)

    def one_of(self, name: str, known: tuple[str, ...], *, default: str) -> str:
        """One of the values whose meaning is known."""
        value = self.get(name)
        if value is None:
            return default
        if value not in known:
            raise self.refuse(name, f"{name} {_shown(value)} is not known in {self._family}; known: {', '.join(known)}")
        return str(value)

    def activation(self, name: str, *, default: str) -> Activation:
        """An activation function under any of Hugging Face's names."""
        return ACTIVATIONS[self.one_of(name, tuple(ACTIVATIONS), default=default)]

    def ignore(self, *names: str) -> None:
        """Fields that are known to change neither a count nor what is kept for backward in this family."""
        self._read.update(names)

    def must_be(self, name: str, *allowed: object, because: str) -> None:
        """A field that is known, but whose other values would change the model in a way that is not counted."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise self.refuse(name, f"{name} {_shown(value)} is not counted yet: {because}; send `parameters` instead")

    def finish(self) -> list[str]:
        """After all reads: refuses fields that may change the count, and names the others that were not used."""
        unknown = sorted(self._config.keys() - self._read - _NEUTRAL)
        suspects = [
            name for name in unknown if _MAY_CHANGE_A_COUNT.search(name) and self._config[name] not in (None, False)
        ]
        if suspects:
            raise UnsupportedModel(
                f"the meaning of {', '.join(suspects[:5])} in a {self._family} config is unknown and may change "
                "the count; remove it if it does not, or send `parameters` instead",
                errors=tuple(
                    Fault(detail="unknown field that may change the count", pointer=f"{self._pointer}/{name}")
                    for name in suspects[:20]
                ),
            )
        nested = [f"{section}.{name}" for section, fields in self._sections.items() for name in fields.finish()]
        return [name for name in unknown if self._config[name] is not None] + nested


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
