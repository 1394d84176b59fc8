"""Windows of attention in configs: one size for all layers, or a list with one for each."""

from app.planning.families.fields import LARGEST_DIMENSION, Fields


def attention_window(fields: Fields, layers: int, *, default: int = 512) -> int:
    """The window of Longformer's attention; the mean where layers differ, which decides the work but no count."""
    if not isinstance(fields.get("attention_window"), list):
        return fields.count("attention_window", default)
    windows = fields.integers("attention_window")
    if len(windows) != layers or not all(1 <= window <= LARGEST_DIMENSION for window in windows):
        raise fields.refuse("attention_window", f"attention_window must be a number, or {layers} of them")
    return -(-sum(windows) // layers)
