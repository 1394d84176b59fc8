#!/usr/bin/env python3
"""Reference parameter counts: what the real `transformers` class of a config.json holds, on torch's meta device.

Development only: needs torch, transformers and numpy in an environment of its own, no weights and no network.

    python tools/reference_counts.py CONFIG.json … > tests/planning/reference_counts/NAME.jsonl

Writes one line per config: the config as given, and total, trainable, embedding and active parameters and components.
A tied tensor counts once; components come from parameter names.
"""

import collections
import copy
import json
import os
import re
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

# the hub's config names a remote-code class; the class transformers ships for it:
ALIAS = {"MPTForCausalLM": "MptForCausalLM", "PhiMoEForCausalLM": "PhimoeForCausalLM"}
NORM = re.compile(r"(norm|^ln_|^ln\d|^ln$)", re.IGNORECASE)
TOWERS = (
    ("vision", r"(vision_tower|vision_model|vision_encoder|vision_embed|visual|image_tower|video_tower)"),
    ("audio", r"audio_tower"),
)
EMBEDDINGS = (
    ("relative_position", r"(relative_attention_bias|rel_embeddings)"),
    ("type_embedding", r"(token_type|type_embed)"),
    ("position_embedding", r"(position|wpe)"),
    ("word_embedding", r""),
)
BEFORE_NORMS = (
    ("projector", r"(multi_modal_projector|mm_projector|image_newline|connector\.|aligner\.|language_projection)"),
    ("projector", r"(vision_projection|embed_vision|embed_audio|qformer|query_tokens)"),
    ("router", r"(experts\.router\.|mixer\.gate\.)"),
    ("attention", r"self_attention\.experts\.bias$"),
    ("routed_experts", r"(\.experts\.|block_sparse_moe\.(input|output)_linear|\.mlp\.(input|output)_linear\.)"),
    ("shared_experts", r"(shared_experts?\.|shared_mlp)"),
    ("norm", r"((altup|laurel).*norm|norm.*(altup|laurel|_residual$))"),
    ("residual", r"(altup|laurel|_residual$)"),
    ("router", r"(shared_expert_gate|router|moe\.gate\.|mlp\.gate\.|ffn\.gate\.|feed_forward\.gate\.)"),
    ("norm", r"pre_ln\."),
    (
        "ssm_or_linear_attention",
        r"(temporal_block\.(linear_|conv_1d|rg_lru)|mlstm_layer\.[qkviof]|layers\.\d+\.conv\.)",
    ),
    ("attention", r"mixer\.[qkvo]_proj"),
    ("mlp", r"(mixer\.(up|down|fc\d_latent)_proj|feed_forward\.(key|value|time_mix)|layers\.\d+\.linear\.)"),
)
AFTER_NORMS = (
    ("head_other", r"(lm_head|predictions|vocab_transform|vocab_projector|cls\.|generator|final_logits)"),
    ("head_other", r"((^|\.)decoder\.bias|^head\.)"),
    ("ssm_or_linear_attention", r"(mixer|mamba|linear_attn|conv1d|layers\.\d+\.conv\.|ssm|a_log)"),
    ("ssm_or_linear_attention", r"(?<!self_attn\.)dt_proj"),
    ("embedding_projection", r"(embedding_hidden_mapping_in|embeddings_project|project_in|project_out)"),
    ("attention", r"(attn|attention|query|key|value|q_proj|k_proj|v_proj|o_proj|qkv)"),
    ("mlp", r"(mlp|ffn|fc1|fc2|intermediate|output\.dense|dense|feed_forward|pooler|block_sparse)"),
    ("mlp", r"(wi_|\.wi\.|\.wo\.|lin1|lin2|fc_in|fc_out)"),
    ("embedding_projection", r"per_layer_"),
)
"""Components and what the names of their parameters contain; the first that fits counts."""


def first_fit(table, name):
    return next((part for part, pattern in table if re.search(pattern, name)), None)


def component(name, is_emb, head_names):
    if name in head_names:
        return "lm_head"
    low = name.lower()
    if tower := first_fit(TOWERS, low):
        return tower
    if is_emb:
        return first_fit(EMBEDDINGS, low)
    if found := first_fit(BEFORE_NORMS, low):
        return found
    parts = [part for part in name.split(".") if not part.isdigit()]
    if NORM.search(parts[-2] if len(parts) > 1 else name):
        return "norm"
    return first_fit(AFTER_NORMS, low) or "other"


def moe_info(cfg):
    t = cfg.get_text_config() if hasattr(cfg, "get_text_config") else cfg
    e = k = None
    for f in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        if isinstance(getattr(t, f, None), int):
            e = getattr(t, f)
            break
    for f in ("num_experts_per_tok", "experts_per_token", "moe_top_k", "moe_topk", "top_k_experts"):
        if isinstance(getattr(t, f, None), int):
            k = getattr(t, f)
            break
    f = getattr(t, "ffn_config", None)
    if f is not None:
        e, k = getattr(f, "moe_num_experts", e), getattr(f, "moe_top_k", k)
    return e, k or {"switch_transformers": 1, "nllb-moe": 2}.get(cfg.model_type)


def build(config):
    import torch
    import transformers

    given = {name: copy.deepcopy(value) for name, value in config.items() if name != "quantization_config"}
    settings = transformers.CONFIG_MAPPING[given["model_type"]].from_dict(given)
    name = ALIAS.get(config["architectures"][0], config["architectures"][0])
    with torch.device("meta"):
        model = getattr(transformers, name)(settings)
    if config["model_type"] in ("t5", "mt5", "umt5", "longt5") and config.get("tie_word_embeddings") is False:
        # transformers 5 ties this family at construction and unties when a checkpoint brings its own head, as all do
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight, device="meta"))
    return settings, model


def count(config):
    from torch import nn

    settings, model = build(config)
    embeddings = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        or (
            "Embedding" in type(module).__name__
            and isinstance(getattr(module, "weight", None), nn.Parameter)
            and module.weight.ndim == 2
            and "norm" not in name.lower()
        )
    }
    head = getattr(model.get_output_embeddings(), "weight", None)
    input_embeddings = getattr(model.get_input_embeddings(), "weight", None)
    tied = head is not None and (head is input_embeddings or id(head) in embeddings)
    named = list(model.named_parameters(remove_duplicate=False))
    heads = set() if head is None or tied else {name for name, tensor in named if tensor is head}
    components, seen, frozen = collections.Counter(), set(), 0
    for name, tensor in named:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        components[component(name, id(tensor) in embeddings, heads)] += tensor.numel()
        frozen += 0 if tensor.requires_grad else tensor.numel()
    total, routed = sum(components.values()), components.get("routed_experts", 0)
    experts, per_token = moe_info(settings)
    return {
        "config": config,
        "class": type(model).__name__,
        "total": total,
        "trainable": total - frozen,
        "embedding": sum(components[part] for part in ("word_embedding", "position_embedding", "type_embedding")),
        "active": total - routed + (routed * per_token // experts if routed else 0),
        "linear": linear_layers(model),
        "components": dict(sorted((part, amount) for part, amount in components.items() if amount)),
    }


def linear_layers(model):
    """Layers an adapter can be put beside, by the last part of their name: how many, and their inputs plus outputs."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = collections.defaultdict(lambda: [0, 0])
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            rows = layers[name.rpartition(".")[2]]
            rows[0] += 1
            rows[1] += sum(module.weight.shape)
    return dict(sorted(layers.items()))


def main():
    for path in sys.argv[1:]:
        print(json.dumps(count(json.loads(Path(path).read_text()))))


if __name__ == "__main__":
    main()
