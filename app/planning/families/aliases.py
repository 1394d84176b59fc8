"""Names for one size in configs: many classes take a common name beside their own."""

from app.planning.families.fields import Fields


def spelling(fields: Fields, common: str, own: str) -> str:
    """The name that a file gives a size: where it has both, the common one wins, as in the classes of transformers."""
    fields.ignore(common, own)
    return own if fields.get(common) is None else common
