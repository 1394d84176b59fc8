from pathlib import Path

import pytest

from app.main import create_app
from app.settings import Settings, SettingsError
from app.units import MIB

URL = "https://hub.example.org"


def hub_settings(**given: str) -> Settings:
    environ = {f"TONNAGE_HUB_{name}": value for name, value in given.items()}
    return Settings.from_environment(environ, database_url="postgresql://nobody@localhost/none")


def test_without_a_url_there_is_no_hub() -> None:
    assert hub_settings().hub_url is None
    assert create_app(hub_settings()).state.service.hub is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (URL, URL),
        (f"{URL}/", URL),
        (f"{URL}:8443/api/hf", f"{URL}:8443/api/hf"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://localhost/x/", "http://localhost/x"),
    ],
)
def test_a_hub_is_an_https_address_or_on_this_machine(given: str, kept: str) -> None:
    assert hub_settings(URL=given).hub_url == kept
    create_app(hub_settings(URL=given)).state.service.hub.close()


def test_hosts_come_with_commas_between(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_hunter2\n")
    hosts = "cdn.example.org, store.example.org:8443,"
    settings = hub_settings(URL=URL, ALLOWED_HOSTS=hosts, TOKEN_FILE=str(tmp_path / "token"), MAX_CONFIG_BYTES="2 MiB")
    assert settings.hub_allowed_hosts == ("cdn.example.org", "store.example.org:8443")
    assert settings.hub_max_config_bytes == 2 * MIB
    assert settings.hub_token is not None
    assert settings.hub_token.get_secret_value() == "hf_hunter2"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        *(
            ({"URL": url}, "TONNAGE_HUB_URL should be https://host or https://host/path; http:// is for this machine")
            for url in (
                *("", "hub.example.org", "http://hub.example.org", "http://127.0.0.1.nip.io", "ftp://hub.example.org"),
                *(
                    f"{URL}?x",
                    f"{URL}#x",
                    f"{URL}/../x",
                    f"{URL}//x",
                    f"{URL}:0",
                    f"{URL}:65536",
                    "https://[::1",
                    "https:// ",
                ),
            )
        ),
        (
            {"URL": "https://me:hunter2@hub.example.org"},
            "TONNAGE_HUB_URL should hold no user or password; use TONNAGE_HUB_TO",
        ),
        ({"URL": "http://me:hunter2@hub.example.org"}, "TONNAGE_HUB_URL should hold no user or password"),
        ({"TOKEN": "hunter2"}, "TONNAGE_HUB_TOKEN and TONNAGE_HUB_ALLOWED_HOSTS need TONNAGE_HUB_URL"),
        ({"ALLOWED_HOSTS": "a.example.org"}, "TONNAGE_HUB_TOKEN and TONNAGE_HUB_ALLOWED_HOSTS need TONNAGE_HUB_URL"),
        ({"URL": URL, "TOKEN": "hunter2\nX-Evil: 1"}, "TONNAGE_HUB_TOKEN should be a token"),
        ({"URL": URL, "TOKEN": ""}, "TONNAGE_HUB_TOKEN should be a token"),
        (
            {"URL": URL, "ALLOWED_HOSTS": "https://a.example.org"},
            "TONNAGE_HUB_ALLOWED_HOSTS should be hosts with commas",
        ),
        ({"URL": URL, "ALLOWED_HOSTS": "*.example.org"}, "TONNAGE_HUB_ALLOWED_HOSTS should be hosts with commas"),
        ({"URL": URL, "TIMEOUT_SECONDS": "0"}, "TONNAGE_HUB_TIMEOUT_SECONDS should be greater than or equal to 0.1"),
        ({"URL": URL, "MAX_CONFIG_BYTES": "1 GiB"}, "TONNAGE_HUB_MAX_CONFIG_BYTES should be less than or equal to"),
        ({"URL": URL, "FRESH_SECONDS": "-1"}, "TONNAGE_HUB_FRESH_SECONDS should be greater than or equal to 0"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_a_sentence(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        hub_settings(**given)
    assert str(wrong.value).startswith(sentence)
    assert "hunter2" not in str(wrong.value)
