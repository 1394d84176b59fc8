from pathlib import Path

import pytest

from app.settings import Settings, SettingsError, is_loopback
from app.units import MIB


def test_nothing_set_serves_this_machine_only() -> None:
    settings = Settings.from_environment({})
    assert settings.host == "127.0.0.1"
    assert settings.port == 8000
    assert settings.is_loopback
    assert settings.database_url is None
    assert settings.data_dir == Path.cwd() / ".data"


def test_an_option_goes_before_the_environment_and_none_is_no_option() -> None:
    environ = {"TONNAGE_PORT": "9000", "TONNAGE_HOST": "::1", "HOME": "/nowhere"}
    settings = Settings.from_environment(environ, port=9001, host=None)
    assert (settings.host, settings.port) == ("::1", 9001)


def test_a_size_may_be_written_as_people_write_it() -> None:
    assert Settings.from_environment({"TONNAGE_MAX_BODY_BYTES": "2 MiB"}).max_body_bytes == 2 * MIB
    assert Settings.from_environment({"TONNAGE_MAX_BODY_BYTES": "4096"}).max_body_bytes == 4096


def test_settings_of_the_agent_are_not_ours_to_judge() -> None:
    Settings.from_environment({"TONNAGE_AGENT_ANYTHING": "1"})


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"TONNAGE_PROT": "1"}, "TONNAGE_PROT is not a setting; did you mean TONNAGE_PORT?"),
        ({"TONNAGE_XYZZY": "1"}, "TONNAGE_XYZZY is not a setting; known, after TONNAGE_: DATABASE_POOL_SIZE, "),
        ({"TONNAGE_PORT": "eighty"}, "TONNAGE_PORT should be a valid integer"),
        ({"TONNAGE_PORT": "65536"}, "TONNAGE_PORT should be less than or equal to 65535, not '65536'"),
        (
            {"TONNAGE_LOG_LEVEL": "loud"},
            "TONNAGE_LOG_LEVEL should be 'debug', 'info', 'warning' or 'error', not 'loud'",
        ),
        ({"TONNAGE_MAX_BODY_BYTES": "8 floppies"}, "TONNAGE_MAX_BODY_BYTES '8 floppies' is not a size"),
        ({"TONNAGE_SHUTDOWN_GRACE_SECONDS": "nan"}, "TONNAGE_SHUTDOWN_GRACE_SECONDS should be a finite number"),
        (
            {"TONNAGE_NODE_STALE_SECONDS": "500"},
            "TONNAGE_NODE_OFFLINE_SECONDS should be greater than TONNAGE_NODE_STALE",
        ),
        ({"TONNAGE_DATABASE_URL": "mysql://me:hunter2@x/y"}, "TONNAGE_DATABASE_URL should begin with postgresql://"),
        ({"TONNAGE_DATABASE_URL": ""}, "TONNAGE_DATABASE_URL should begin with postgresql://"),
        (
            {"TONNAGE_DATABASE_URL_FILE": "/no/such"},
            "names '/no/such', which cannot be read: No such file or directory",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environment(environ)
    assert sentence in str(wrong.value)
    assert "\n" not in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


def test_a_wrong_option_is_named_as_it_was_typed() -> None:
    with pytest.raises(SettingsError, match=r"^--port should be greater than or equal to 0, not '-1'$"):
        Settings.from_environment({}, port=-1)


def test_a_secret_comes_from_a_file_and_shows_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://me:hunter2@db/tonnage\n")
    settings = Settings.from_environment({"TONNAGE_DATABASE_URL_FILE": str(secret)})
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://me:hunter2@db/tonnage"
    assert "hunter2" not in repr(settings)


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://a/b")
    environ = {"TONNAGE_DATABASE_URL_FILE": str(tmp_path / "url"), "TONNAGE_DATABASE_URL": "postgresql://a/b"}
    with pytest.raises(SettingsError, match="both set; keep one"):
        Settings.from_environment(environ)


def test_only_a_secret_has_a_file() -> None:
    with pytest.raises(SettingsError, match="TONNAGE_PORT_FILE is not a setting"):
        Settings.from_environment({"TONNAGE_PORT_FILE": "/x"})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "url").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="it is not a text file"):
        Settings.from_environment({"TONNAGE_DATABASE_URL_FILE": str(tmp_path / "url")})


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.3.2.1", "::1", "[::1]"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0", "::", "10.0.0.1", "example.org", "localhost.example.org", "127.0.0.1.nip.io"]
)
def test_other_machines_are_not_this_one(host: str) -> None:
    assert not is_loopback(host)
