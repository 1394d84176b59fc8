"""Models of the catalogue: every card complete, every config counted to its card's number, nothing left lying about."""

import json
import time
import tomllib
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app import catalog
from app.catalog import cards
from app.catalog.cards import FAMILY_USE, ModelCard
from app.errors import UnknownName

MODELS = catalog.load().models
FOLDER = files("app.catalog") / "models"
ROWS: dict[str, dict[str, Any]] = {
    id: row
    for file in (FOLDER / "cards").iterdir()
    for id, row in tomllib.loads(file.read_text(encoding="utf-8")).items()
}
REFERENCE = Path(__file__).parents[1] / "planning" / "reference_counts" / "catalogue.jsonl"
GENERATION = {"text-generation", "instruction-following", "reasoning", "image-text-to-text"}
SEQUENCE = {"text2text-generation", "translation", "summarization"}

each_model = pytest.mark.parametrize("id", MODELS)


def canonical(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, Any]]:
    """What the real classes hold, by config."""
    lines = (json.loads(line) for line in REFERENCE.read_text(encoding="utf-8").splitlines())
    return {canonical(line["config"]): line for line in lines}


@each_model
def test_a_config_counts_to_the_number_of_its_card_and_of_the_real_class(
    id: str, reference: dict[str, dict[str, Any]]
) -> None:
    card, architecture = MODELS[id].card, MODELS[id].architecture
    config = json.loads((FOLDER / ROWS[id]["config"]).read_text(encoding="utf-8"))
    line = reference[canonical(config)]
    assert card.parameters == architecture.parameters == line["total"]
    assert card.active_parameters == architecture.active_parameters == line["active"]


@each_model
def test_a_card_is_complete_and_sourced(id: str) -> None:
    card = MODELS[id].card
    assert card.id == id
    assert card.source == f"https://huggingface.co/{id}"
    for text in (card.organization, card.licence, card.pretraining_objective, card.typical_use, card.limits):
        assert text == text.strip()
        assert len(text) > 1
    assert card.released is None or date(2018, 1, 1) <= card.released <= date(2026, 11, 24)
    assert card.training_tokens is None or card.training_tokens > 10**10
    assert 128 <= card.context_tokens <= 600_000
    assert len(set(card.tasks)) == len(card.tasks)


@each_model
def test_tasks_are_those_that_the_family_can_do(id: str) -> None:
    card = MODELS[id].card
    assert card.family_use == FAMILY_USE[card.family]
    if card.family == "encoder-only":
        assert not {*GENERATION, *SEQUENCE, "code-generation"} & set(card.tasks)
    else:
        assert "fill-mask" not in card.tasks
        assert SEQUENCE & set(card.tasks) if card.family == "encoder-decoder" else not SEQUENCE & set(card.tasks)


@each_model
def test_a_card_overrides_only_what_the_config_or_the_family_gets_wrong(id: str) -> None:
    row, architecture = ROWS[id], MODELS[id].architecture
    assert row.get("context_tokens") != architecture.shapes.longest_sequence
    assert row.get("pretraining_objective") != architecture.family.pretraining_objective
    assert row.get("active_parameters") != row["parameters"]


def test_the_catalogue_spans_the_three_architectures_and_many_families() -> None:
    found = [model.card for model in MODELS.values()]
    assert len(found) >= 160
    for family in FAMILY_USE:
        assert sum(card.family == family for card in found) >= 30, family
    assert len({card.model_type for card in found}) >= 40
    assert len({card.organization for card in found}) >= 20


def test_every_config_has_one_card_and_every_reference_line_one_config() -> None:
    configs = [row["config"] for row in ROWS.values()]
    assert len(set(configs)) == len(configs)
    assert {path.name for path in FOLDER.iterdir() if path.name.endswith(".json")} == set(configs)
    assert len(REFERENCE.read_text(encoding="utf-8").splitlines()) == len(configs)


def test_ids_differ_in_more_than_case() -> None:
    assert len({id.lower() for id in MODELS}) == len(MODELS) == len(ROWS)


def test_cards_of_one_organisation_are_in_one_file() -> None:
    organizations: dict[str, set[str]] = {}
    for file in (FOLDER / "cards").iterdir():
        for row in tomllib.loads(file.read_text(encoding="utf-8")).values():
            organizations.setdefault(row["organization"], set()).add(file.name)
    assert {name: sorted(found) for name, found in organizations.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("id", "changes"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", {"active_parameters": 12_879_925_248, "context_tokens": 32_768}),
        ("meta-llama/Llama-3.1-8B", {"active_parameters": 8_030_261_248, "context_tokens": 131_072}),
        ("FacebookAI/roberta-base", {"context_tokens": 512, "family": "encoder-only"}),
        ("google-bert/bert-base-uncased", {"released": date(2018, 10, 31), "training_tokens": None}),
        ("EleutherAI/pythia-12b", {"training_tokens": 299_892_736_000, "licence": "Apache-2.0"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_facts_that_anybody_can_look_up(id: str, changes: dict[str, Any]) -> None:
    card = MODELS[id].card
    assert {name: getattr(card, name) for name in changes} == changes


def test_reading_all_of_it_does_not_hold_up_the_start() -> None:
    def seconds() -> float:
        begin = time.process_time()
        catalog.load.__wrapped__()
        return time.process_time() - begin

    assert min(seconds() for _ in range(3)) < 0.3, "about 0.1 s of one core is usual"


# What the loader refuses: each row is right but for one thing.

ROW: dict[str, Any] = {
    "config": "small.json",
    "organization": "Nobody",
    "licence": "MIT",
    "parameters": 5,
    "tasks": ["text-generation"],
    "typical_use": "tests",
    "limits": "tiny",
    "source": "https://example.org",
}
CONFIG = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 16, "n_positions": 128}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cards").mkdir()
    (tmp_path / "small.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return tmp_path


def write(folder: Path, row: dict[str, Any], *, file: str = "a.toml") -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in row.items()]
    (folder / "cards" / file).write_text("\n".join(['["nobody/small"]', *lines]), encoding="utf-8")


def test_a_minimal_row_takes_the_rest_from_its_config_and_family(folder: Path) -> None:
    write(folder, ROW)
    (model,) = cards.models(folder).values()
    assert model.card == ModelCard(
        id="nobody/small",
        organization="Nobody",
        licence="MIT",
        released=None,
        family="decoder-only",
        family_use=FAMILY_USE["decoder-only"],
        model_type="gpt2",
        pretraining_objective="causal language modelling",
        parameters=5,
        active_parameters=5,
        context_tokens=128,
        training_tokens=None,
        tasks=("text-generation",),
        typical_use="tests",
        limits="tiny",
        source="https://example.org",
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"license": "MIT"}, "license"),
        ({"tasks": ["mind-reading"]}, "tasks"),
        ({"tasks": []}, "tasks"),
        ({"parameters": "5"}, "parameters"),
        ({"parameters": 0}, "parameters"),
        ({"released": "2024"}, "released"),
        ({"training_tokens": 1.5}, "training_tokens"),
    ],
    ids=str,
)
def test_a_wrong_row_stops_the_start(folder: Path, changes: dict[str, Any], field: str) -> None:
    write(folder, {**ROW, **changes})
    with pytest.raises(ValidationError, match=field):
        cards.models(folder)


def test_a_row_without_a_source_stops_the_start(folder: Path) -> None:
    write(folder, {name: value for name, value in ROW.items() if name != "source"})
    with pytest.raises(ValidationError, match="source"):
        cards.models(folder)


def test_two_cards_for_one_model_stop_the_start(folder: Path) -> None:
    write(folder, ROW)
    write(folder, ROW, file="b.toml")
    with pytest.raises(ValueError, match="two cards for nobody/small"):
        cards.models(folder)


def test_a_config_that_no_family_reads_stops_the_start(folder: Path) -> None:
    write(folder, ROW)
    (folder / "small.json").write_text('{"model_type": "gpt9"}', encoding="utf-8")
    with pytest.raises(UnknownName, match="gpt9"):
        cards.models(folder)
