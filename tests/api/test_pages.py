import re

import httpx

from app.api.problems import problem_types, status_of


def test_the_first_page_leads_everywhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    links = re.findall(r'href="([^"]+)"', page.text)
    assert {"docs", "openapi.json", "problems"} <= set(links)
    for link in links:
        assert client.get(f"/{link}").status_code == 200, link


def test_the_docs_need_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "://" not in page.text
    wanted = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert {"docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "docs/start.js"} <= set(wanted)
    for link in wanted:
        assert client.get(f"/{link}").status_code == 200, link
    assert "<script>" not in page.text
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    start = client.get("/docs/start.js")
    assert start.headers["Content-Type"].startswith("text/javascript")
    assert 'url: "openapi.json"' in start.text
    assert "SwaggerUIBundle" in client.get("/docs/swagger-ui-bundle.js").text
    assert client.get("/docs/swagger-ui-bundle.js").headers["Content-Type"].startswith("text/javascript")


def test_every_kind_of_problem_has_its_page(client: httpx.Client) -> None:
    listed = client.get("/problems").text
    for kind in problem_types():
        assert f'href="problems/{kind.slug}"' in listed
        page = client.get(f"/problems/{kind.slug}")
        assert page.status_code == 200
        assert f"<h1>{kind.title}</h1>" in page.text
        assert str(status_of(kind)) in page.text
