#!/usr/bin/env python3
"""Reference adapter counts: the trainable parameters PEFT adds to the real `transformers` class of a config.json.

Development only: needs torch, transformers and peft in an environment of its own, no weights and no network.

    python tools/reference_adapters.py CONFIG.json ... > tests/planning/reference_adapters.jsonl

Writes one line for each of several choices of target modules per config.
"""

import collections
import json
import sys
import warnings
from pathlib import Path

from reference_counts import build

warnings.filterwarnings("ignore")

RANKS = (1, 8, 64)


def choices(model):
    """The default, all linear layers, each name alone, and the head with the first name."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    names = collections.Counter(
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    )
    return [None, "all-linear", *([name] for name in sorted(names)), sorted(names)[:2]]


def main():
    import torch
    from peft import LoraConfig, get_peft_model

    for path in sys.argv[1:]:
        config = json.loads(Path(path).read_text())
        for index, target in enumerate(choices(build(config)[1])):
            rank = RANKS[index % len(RANKS)]
            model = build(config)[1]
            try:
                with torch.device("meta"):
                    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=target))
            except ValueError:
                continue
            trainable = sum(tensor.numel() for tensor in adapted.parameters() if tensor.requires_grad)
            line = {"config": config, "rank": rank, "target_modules": target, "trainable": trainable}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
