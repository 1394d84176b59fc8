"""Model families: one short declaration each. `FAMILIES` maps a `model_type` to its family.

A family reads its `config.json` into a frozen layout (which parts exist) and sizes (how large they are), and runs its
forward pass on a tape. To add one: a module beside this one with a `Family`, one line in `FAMILIES`, and its real
config in the catalogue with the published count in its card.
"""

from types import MappingProxyType

from app.planning.families import (
    bart,
    bert,
    compact_encoders,
    deberta,
    deepseek,
    doge,
    early,
    entity_encoders,
    experts,
    gemma,
    gemma3n,
    gemma4,
    gpt,
    jetmoe,
    linear_hybrids,
    llama,
    llama_like,
    long_encoder_decoders,
    longcat,
    mamba_hybrids,
    modernbert,
    multimodal,
    multimodal_audio,
    multimodal_early,
    multimodal_gemma,
    multimodal_gemma3n,
    multimodal_llama,
    multimodal_others,
    multimodal_qwen,
    narrow_bert,
    olmo,
    opt,
    parallel,
    plain_mlp,
    recurrent,
    rotary_encoders,
    shared_experts,
    sparse_encoders,
    state_space,
    t5,
    t5gemma,
    variants,
    windowed_experts,
    xlnet,
    zamba,
)
from app.planning.families.family import Family

FAMILIES: MappingProxyType[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for module in (
            llama,
            llama_like,
            plain_mlp,
            variants,
            doge,
            modernbert,
            early,
            gemma,
            gemma3n,
            gemma4,
            gpt,
            olmo,
            opt,
            parallel,
            experts,
            recurrent,
            zamba,
            jetmoe,
            longcat,
            windowed_experts,
            linear_hybrids,
            mamba_hybrids,
            shared_experts,
            deepseek,
            state_space,
            bert,
            deberta,
            narrow_bert,
            rotary_encoders,
            bart,
            compact_encoders,
            entity_encoders,
            long_encoder_decoders,
            sparse_encoders,
            t5,
            t5gemma,
            xlnet,
            multimodal,
            multimodal_audio,
            multimodal_early,
            multimodal_gemma,
            multimodal_gemma3n,
            multimodal_llama,
            multimodal_others,
            multimodal_qwen,
        )
        for family in vars(module).values()
        if isinstance(family, Family)
    }
)
"""By `model_type`: every `Family` that one of the modules holds."""
