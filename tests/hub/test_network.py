"""The way to the hub by itself: which ground is private, and encryption that checks whom it speaks to."""

import socket
import time
from pathlib import Path

import pytest
from hub.fake_hub import FIRST, MODEL, OPEN_SESAME, redirects, revision_path, running_hub

from app.hub import Hub, HubUnavailable, is_commit, is_model_id
from app.hub.network import Deadline, ForbiddenGround, Network, Place, ground_of

CERTIFICATE = Path(__file__).parent / "localhost.pem"


@pytest.mark.parametrize(
    ("address", "ground"),
    [
        ("93.184.215.14", 0),
        ("2606:2800:21f:cb07::1", 0),
        ("10.1.2.3", 1),
        ("172.16.0.1", 1),
        ("192.168.1.1", 1),
        ("100.64.0.1", 1),
        ("fd00::1", 1),
        ("::ffff:10.0.0.1", 1),
        ("127.0.0.1", 2),
        ("127.9.9.9", 2),
        ("::1", 2),
        ("::ffff:127.0.0.1", 2),
        ("169.254.169.254", 3),
        ("::ffff:169.254.169.254", 3),
        ("fe80::1%eth0", 3),
        ("0.0.0.0", 3),  # noqa: S104  -- looked at
        ("::", 3),
        ("224.0.0.1", 3),
        ("ff02::1", 3),
        ("255.255.255.255", 3),
    ],
)
def test_how_private_an_address_is(address: str, ground: int) -> None:
    assert ground_of(address) == ground


def test_no_connection_leads_to_more_private_ground_than_the_first() -> None:
    with running_hub() as hub:
        network = Network(Deadline(2))
        network.connect_tcp("localhost", hub.port).close()
        network.connect_tcp("127.0.0.1", hub.port).close()
        with pytest.raises(ForbiddenGround, match=r"169\.254\.169\.254"):
            network.connect_tcp("169.254.169.254", 80)


@pytest.mark.parametrize("id", ["gpt2", "org/name", "01-ai/Yi-34B", "a/b.c_d-e", "_a/b", "a", "a--b/c"])
def test_ids_of_a_hub(id: str) -> None:
    assert is_model_id(id)


@pytest.mark.parametrize(
    ("revision", "whole"), [("a" * 40, True), ("0" * 64, True), ("a" * 39, False), ("A" * 40, False), ("main", False)]
)
def test_whole_commits(revision: str, whole: bool) -> None:
    assert is_commit(revision) is whole


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://Hub.example.org", Place("https", "hub.example.org", 443, "/")),
        ("http://127.0.0.1:81/a?b=c#d", Place("http", "127.0.0.1", 81, "/a?b=c")),
        ("https://[::1]:8443/;x", Place("https", "::1", 8443, "/;x")),
    ],
)
def test_a_url_taken_apart(url: str, place: Place) -> None:
    assert Place.of(url) == place
    assert Place.of(place.url) == place


def hub_at(url: str, timeout_seconds: float = 2) -> Hub:
    return Hub(url, token=None, timeout_seconds=timeout_seconds, max_config_bytes=100_000)


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_a_visit_ends_by_itself(first: bytes) -> None:
    with running_hub() as hub, hub_at(hub.url, 0.3).visit() as visit:
        hub.answers[revision_path()] = hub.drips(first, b"a")
        started = time.monotonic()
        with pytest.raises(HubUnavailable, match=r"did not answer within 0\.3 s"):
            visit.commit(MODEL, "main")
        assert time.monotonic() - started < 2
        with pytest.raises(HubUnavailable, match="did not answer"):
            visit.config(MODEL, FIRST)
        assert hub.paths == [revision_path()], "the time is one for both"


def test_an_encryption_that_never_begins_ends_by_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with hub_at(url, 0.3).visit() as visit, pytest.raises(HubUnavailable, match="did not answer"):
            visit.commit(MODEL, "main")


def test_an_encrypted_hub_must_be_who_it_says_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(CERTIFICATE) as hub:
        hub.publish()
        with hub_at(f"https://localhost:{hub.port}").visit() as visit, pytest.raises(HubUnavailable):
            visit.commit(MODEL, "main")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        with hub_at(f"https://localhost:{hub.port}").visit() as visit:
            commit = visit.commit(MODEL, "main")
            assert b"llama" in visit.config(MODEL, commit)
        with hub_at(f"https://127.0.0.1:{hub.port}").visit() as visit, pytest.raises(HubUnavailable):
            visit.commit(MODEL, "main")
        assert len(hub.asked) == 2


def test_an_encrypted_hub_does_not_lead_out_of_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with running_hub(CERTIFICATE) as hub, running_hub() as plain:
        plain.publish()
        allowed = Hub(
            f"https://localhost:{hub.port}",
            token=OPEN_SESAME,
            timeout_seconds=2,
            max_config_bytes=100_000,
            allowed_hosts=[plain.host],
        )
        hub.answers[revision_path()] = redirects(f"{plain.url}{revision_path()}")
        with allowed.visit() as visit, pytest.raises(HubUnavailable, match="without https"):
            visit.commit(MODEL, "main")
        assert plain.asked == []
