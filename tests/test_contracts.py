"""What every operation owes its callers, proved on all of them at once: nothing here lists operations by hand."""

import json
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from jsonschema import Draft202012Validator
from live_service import ENTRIES, PLAN, LiveService

from app.api.auth import Role, requirement_of
from app.api.problems import MEDIA_TYPE
from app.api.routing import StrictRoute
from app.main import create_app
from app.settings import Settings
from app.storage.tokens import ROLES

PUBLIC = {
    "/",
    "/docs",
    "/docs/start.js",
    "/docs/{asset}",
    "/healthz",
    "/metrics",
    "/openapi.json",
    "/problems",
    "/problems/{slug}",
    "/readyz",
}
APP = create_app(Settings.from_environment({}, database_url="postgresql://nobody@localhost/none"))
DOCUMENT: dict[str, Any] = APP.openapi()
ROUTES = list(iter_route_contexts(APP.routes))
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
BODIES = {
    name: operation
    for name, operation in OPERATIONS.items()
    if "application/json" in operation.get("requestBody", {}).get("content", ())
}
EXAMPLES = {
    f"{name} {label}": (name, example["value"])
    for name, operation in BODIES.items()
    for label, example in operation["requestBody"]["content"]["application/json"].get("examples", {}).items()
}

operation_names = pytest.mark.parametrize("name", OPERATIONS)


def schema_of(name: str, status: str) -> dict[str, Any]:
    """The documented schema of an answer, with all it refers to."""
    content = OPERATIONS[name]["responses"][status]["content"]
    schema: dict[str, Any] = content.get("application/json", content.get(MEDIA_TYPE))["schema"]
    return {**schema, "components": DOCUMENT["components"]}


def check(value: object, schema: dict[str, Any]) -> None:
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    faults = [f"{'/'.join(map(str, fault.path))}: {fault.message[:300]}" for fault in validator.iter_errors(value)]
    assert faults == []


def test_the_walk_finds_the_routes() -> None:
    """The routes are nested: a walk that saw the outermost ones only would find everything in order."""
    paths = {context.path for context in ROUTES}
    assert {"/v1/plans/{plan_id}/revisions/{revision}", "/v1/agent/reports", "/healthz"} <= paths
    assert len(paths) > 20


def test_what_is_written_under_a_field_of_an_answer_is_in_the_document() -> None:
    """In answers of their own, in pages, and in what these consist of."""
    schemas = DOCUMENT["components"]["schemas"]
    for schema, field, word in (
        ("ConvertedValue", "stored", "scale included"),
        ("ErrorSummary", "sqnr_db", "log10"),
        ("FormatView", "overflow", "beyond"),
        ("ConvertedComponent", "kept", "stay"),
    ):
        assert word in schemas[schema]["properties"][field]["description"], (schema, field)


def test_every_route_has_a_role_or_is_on_the_public_list() -> None:
    without = set()
    for context in ROUTES:
        assert isinstance(context.original_route, APIRoute), f"{context.path} escapes the checks of an API route"
        if requirement_of(context.dependant) is None:
            without.add(context.path)
    assert without == PUBLIC


def test_every_route_with_a_role_authenticates_before_it_reads() -> None:
    for context in ROUTES:
        if context.path not in PUBLIC:
            assert isinstance(context.original_route, StrictRoute), context.path
            assert (context.path or "").startswith("/v1/")


def test_without_a_token_every_route_but_the_public_ones_is_closed(live: LiveService) -> None:
    live.token(Role.ADMIN)
    with live.client() as client:
        for context in ROUTES:
            if context.path in PUBLIC:
                continue
            path = (context.path_format or "").replace("{", "").replace("}", "")
            for method in context.methods or ():
                assert client.request(method, path).status_code == 401, (method, path)


def test_each_role_opens_what_its_requirement_says_and_nothing_else(live: LiveService) -> None:
    opens = {
        Role.VIEWER: {Role.VIEWER},
        Role.PLANNER: {Role.VIEWER, Role.PLANNER},
        Role.ADMIN: {Role.VIEWER, Role.PLANNER, Role.ADMIN},
        Role.AGENT: {Role.AGENT},
    }
    for held in Role:
        with live.client(live.token(held)) as client:
            for context in ROUTES:
                requirement = requirement_of(context.dependant)
                if requirement is None:
                    continue
                path = (context.path_format or "").replace("{", "").replace("}", "")
                for method in context.methods or ():
                    is_closed = client.request(method, path).status_code == 403
                    assert is_closed == (requirement.role not in opens[held]), (held, method, path)


@operation_names
def test_an_operation_is_described(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert not operation["summary"].endswith(".")
    assert len(operation["description"]) > 30
    assert operation["operationId"].isalnum()
    assert operation["tags"]
    assert {"name", "description"} <= DOCUMENT["tags"][0].keys()
    assert set(operation["tags"]) <= {tag["name"] for tag in DOCUMENT["tags"]}
    for parameter in operation.get("parameters", ()):
        assert parameter.get("description") or parameter["schema"].get("description"), parameter["name"]


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)


@operation_names
def test_every_failure_is_documented_as_a_problem(name: str) -> None:
    operation = OPERATIONS[name]
    failures = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
    for status, answer in failures.items():
        assert answer["content"].keys() == {MEDIA_TYPE}, status
        assert answer["content"][MEDIA_TYPE]["schema"] == {"$ref": "#/components/schemas/Problem"}
    expected = {"500"}
    if "security" in operation:
        expected |= {"401", "403", "422", "503"}
    if "requestBody" in operation:
        expected |= {"400", "413", "415", "422"}
    assert expected <= failures.keys()


def test_nothing_of_fastapi_s_own_errors_is_left() -> None:
    text = json.dumps(DOCUMENT)
    assert "HTTPValidationError" not in text
    assert "ValidationError" not in DOCUMENT["components"]["schemas"]
    check(DOCUMENT["components"]["schemas"]["Problem"]["examples"][0], DOCUMENT["components"]["schemas"]["Problem"])


@operation_names
def test_every_answer_has_an_example_that_its_schema_allows(name: str) -> None:
    for status, answer in OPERATIONS[name]["responses"].items():
        content = answer.get("content", {}).get("application/json")
        if content is not None:
            assert "example" in content, f"{name} {status}: say one with app.api.answers.documented or shown_with"
            check(content["example"], schema_of(name, status))


@pytest.mark.parametrize("name", BODIES)
def test_every_body_has_examples(name: str) -> None:
    assert any(name == of for of, _ in EXAMPLES.values())


@pytest.mark.parametrize(("name", "example"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_an_example_works_and_its_answer_is_what_is_documented(client: httpx.Client, name: str, example: Any) -> None:
    answer = call(client, name, stored(client), json=example)
    assert answer.status_code < 300, answer.text
    check(answer.json(), schema_of(name, str(answer.status_code)))


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name.startswith(("GET /v1", "DELETE"))])
def test_what_is_read_is_what_is_documented(client: httpx.Client, name: str) -> None:
    answer = call(client, name, stored(client))
    assert answer.status_code in (200, 204), answer.text
    if answer.status_code == 200:
        assert answer.json().get("items") != [], "an empty list proves nothing"
        check(answer.json(), schema_of(name, "200"))


def stored(client: httpx.Client) -> dict[str, object]:
    """Store a plan, a node and the team's own entries, and say how a path names them."""
    plan = client.post("/v1/plans", json=PLAN).json()["id"]
    report = next(example for of, example in EXAMPLES.values() if of == "POST /v1/agent/reports")
    client.post("/v1/agent/reports", json=report).raise_for_status()
    for path, entry in ENTRIES.items():
        client.post(path, json={"key": "ours", **entry}).raise_for_status()
    return {"key": "ours", "plan_id": plan, "node_id": client.get("/v1/nodes").json()["items"][0]["id"], "revision": 1}


def call(client: httpx.Client, name: str, known: dict[str, object], **given: Any) -> httpx.Response:
    """Send the operation `name` with what is `known` of the database, else the documented examples, as parameters."""
    method, path = name.split(" ")
    for parameter in OPERATIONS[name].get("parameters", ()):
        if parameter["in"] == "path":
            examples = parameter.get("examples") or parameter["schema"].get("examples")
            value = known.get(parameter["name"], examples[0] if isinstance(examples, list) else None)
            path = path.replace(f"{{{parameter['name']}}}", str(value))
        elif parameter["name"] == "If-Match":
            given["headers"] = {"If-Match": '"1"'}
    return client.request(method, path, **given)


def test_every_field_of_every_body_is_described() -> None:
    def undescribed(schema: dict[str, Any], place: str) -> Iterator[str]:
        for branch in branches(schema):
            for name, field in branch.get("properties", {}).items():
                if not field.get("description") and not any(part.get("description") for part in branches(field)):
                    yield f"{place}/{name}"
                yield from undescribed(field, f"{place}/{name}")
            if "items" in branch:
                yield from undescribed(branch["items"], f"{place}/0")

    for name, operation in BODIES.items():
        assert list(undescribed(operation["requestBody"]["content"]["application/json"]["schema"], name)) == []


# Strictness: each number and boolean of each body is found in the schema, reached by a body that is right up to there,
# and given what another language's client might send for it.

_WRONG: dict[str, list[object]] = {
    "integer": ["5", True, 5.5],
    "number": ["5", True],
    "boolean": ["true", 1, 0],
    "number or text": [True, None],
}


def places(
    schema: dict[str, Any], path: tuple[str | int, ...] = (), *, or_text: bool = False
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every place of a body where the schema has a number or a boolean, with its JSON type, or that of a number which
    may also be written as any text.
    """
    schema = resolved(schema)
    choices = (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ()))
    for choice in choices:
        yield from places(choice, path, or_text=any(is_any_text(resolved(other)) for other in choices))
    if schema.get("type") in _WRONG:
        yield path, "number or text" if or_text and schema["type"] == "number" else schema["type"]
    for name, field in schema.get("properties", {}).items():
        yield from places(field, (*path, name))
    if "items" in schema:
        yield from places(schema["items"], (*path, 0))


def is_any_text(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "string" and not {"enum", "const", "format"} & schema.keys()


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema


def planted(schema: dict[str, Any], value: Any, path: tuple[str | int, ...], wrong: object) -> Any:
    """`value` with `wrong` at `path`; what is missing on the way is made of required fields."""
    if not path:
        return wrong
    step, *rest = path
    node = next(
        node for node in branches(schema) if ("items" in node if step == 0 else step in node.get("properties", {}))
    )
    if step == 0:
        item = value[0] if isinstance(value, list) and value else minimal(node["items"])
        return [planted(node["items"], item, tuple(rest), wrong)]
    filled = {**minimal(node), **(value if isinstance(value, dict) else {})}
    child = node["properties"][step]
    return {**filled, step: planted(child, filled.get(str(step)), tuple(rest), wrong)}


def branches(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    schema = resolved(schema)
    yield schema
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from branches(choice)


def minimal(schema: dict[str, Any]) -> Any:
    """A value that has what the schema requires, whatever it means."""
    schema = next(branch for branch in branches(schema) if "anyOf" not in branch)
    simple = {"integer": 1, "number": 1.0, "boolean": True, "array": [], "null": None}
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema.get("format") == "date-time":
        return "2026-01-31T12:00:00Z"
    if schema.get("type") == "object":
        return {name: minimal(schema["properties"][name]) for name in schema.get("required", ())}
    return simple.get(schema.get("type", ""), "a")


SCALARS = [
    pytest.param(name, path, kind, id=f"{name} {'/'.join(map(str, path))}")
    for name, operation in BODIES.items()
    for path, kind in places(operation["requestBody"]["content"]["application/json"]["schema"])
]


def test_the_search_for_numbers_finds_them() -> None:
    found = {(param.values[0], param.values[1]) for param in SCALARS}
    assert ("POST /v1/estimates/memory", ("training", "micro_batch_size")) in found
    assert ("POST /v1/agent/reports", ("reports", 0, "gpus", 0, "processes", 0, "used_memory_bytes")) in found
    assert ("POST /v1/agent/reports", ("reports", 0, "node", "demo")) in found
    assert ("POST /v1/precision/convert", ("values", 0)) in found
    assert len(found) > 50


@pytest.mark.parametrize(("name", "path", "kind"), SCALARS)
def test_a_number_is_a_number_and_nothing_else(
    client: httpx.Client, name: str, path: tuple[str | int, ...], kind: str
) -> None:
    schema = BODIES[name]["requestBody"]["content"]["application/json"]["schema"]
    example = next(example for of, example in EXAMPLES.values() if of == name)
    known = stored(client) if "{" in name else {}
    for wrong in _WRONG[kind]:
        body = planted(schema, deepcopy(example), path, wrong)
        answer = call(client, name, known, json=body)
        assert answer.status_code == 422, (wrong, answer.text)
        pointers = [error["pointer"] for error in answer.json()["errors"]]
        assert "/" + "/".join(map(str, path)) in pointers, (wrong, answer.text)


def test_roles_are_those_that_tokens_can_have() -> None:
    assert {role.value for role in Role} == set(ROLES)


def test_each_pair_of_method_and_path_is_there_once() -> None:
    pairs = [pair for context in ROUTES for pair in product([context.path], context.methods or ())]
    assert len(set(pairs)) == len(pairs)
