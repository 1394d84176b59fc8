"""What a fact from outside is cited by. Formulas and number formats cannot be built without one of these."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """A paper, a data sheet, or a file of a framework. `where` says what to look at inside; `url` leads there."""

    title: str
    where: str
    url: str
