"""What `accelerate estimate-memory` does for one config.json, timed; `run.py` calls it with a Python that has it."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    start = time.process_time()
    import torch  # noqa: F401, PLC0415 - its import is part of what a user waits for
    from accelerate import init_empty_weights  # noqa: PLC0415
    from accelerate.utils import calculate_maximum_sizes  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    imported = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(sys.stdin.read())
        started = time.process_time()
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        calculate_maximum_sizes(model)
        done = time.process_time()
    parameters = sum(tensor.numel() for tensor in model.parameters())
    print(json.dumps({"import_seconds": imported - start, "seconds": done - started, "parameters": parameters}))


if __name__ == "__main__":
    main()
