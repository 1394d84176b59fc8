"""Windows of attention in configs: one size for all layers, or a list with one for each."""

from dataclasses import replace

from app.planning.families.decoder import Block
from app.planning.families.fields import LARGEST_DIMENSION, Fields

SLIDING = "sliding_attention"


def attention_window(fields: Fields, layers: int, *, default: int = 512) -> int:
    """The window of Longformer's attention; the mean where layers differ, which decides the work but no count."""
    if not isinstance(fields.get("attention_window"), list):
        return fields.count("attention_window", default)
    windows = fields.integers("attention_window")
    if len(windows) != layers or not all(1 <= window <= LARGEST_DIMENSION for window in windows):
        raise fields.refuse("attention_window", f"attention_window must be a number, or {layers} of them")
    return -(-sum(windows) // layers)


def windowed_blocks(
    fields: Fields, sizes: dict[str, int], block: Block, *, default: int | None, full_every: int = 0
) -> tuple[Block, ...]:
    """The layers with a window and those without, each kind as one run, the last layer's kind last. `default` is the
    class's window, and every `full_every`-th layer has none where the file lists no `layer_types`.
    """
    layers = sizes["num_hidden_layers"]
    window = None if fields.is_null("sliding_window") else fields.whole("sliding_window", default or 0, most=2**31)
    if not window or fields.get("use_sliding_window") is False:
        return (block,)
    listed = fields.get("layer_types")
    if not isinstance(listed, list):
        full_every = fields.whole("sliding_window_pattern", full_every) or layers + 1
        listed = [SLIDING if (index + 1) % full_every else "full_attention" for index in range(layers)]
    sizes["sliding_window"] = window
    sliding = replace(block, attention=replace(block.attention, window="sliding_window"))
    count = listed.count(SLIDING)
    if count in (0, layers):
        return (sliding if count else block,)
    sizes |= {"num_sliding_layers": count, "num_full_layers": layers - count}
    kinds = (replace(sliding, repeats="num_sliding_layers"), replace(block, repeats="num_full_layers"))
    return kinds if listed[-1] != SLIDING else kinds[::-1]
