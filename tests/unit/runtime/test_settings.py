from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from tandem.runtime.settings import (
    Block,
    DatabaseSettings,
    ServerSettings,
    ServiceSettings,
    SettingsError,
    load_settings,
)
from tools import configuration


class Sizes(Block):
    small: int = Field(1, ge=1, description="The small one")
    large: int = Field(10, ge=1, description="The large one")


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TANDEM_COMMAND_")
    section: ClassVar[str] = "command"

    database: DatabaseSettings = Field(description="The database")
    server: ServerSettings = Field(ServerSettings(port=50051), description="The server")
    sizes: Sizes = Field(Sizes(small=2), description="Sizes")
    nodes: tuple[str, ...] = Field((), description="Nodes")


URL = "postgresql://tandem:s3cret@127.0.0.1/write"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TANDEM_COMMAND_DATABASE__URL", URL)
    return monkeypatch


@pytest.fixture
def config(environment: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "tandem.toml"
    environment.setenv("TANDEM_CONFIG", str(path))
    return path


def problem() -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(Settings)
    assert "s3cret" not in str(raised.value)
    return str(raised.value)


def test_a_nested_setting_comes_from_the_environment_and_its_neighbours_keep_their_defaults(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("TANDEM_COMMAND_SERVER__HOST", "::1")
    environment.setenv("TANDEM_COMMAND_SIZES__LARGE", "20")
    settings = load_settings(Settings)
    assert (settings.server.host, settings.server.port) == ("::1", 50051)
    assert settings.sizes == Sizes(small=2, large=20)


def test_the_file_is_read_and_the_environment_wins_over_it(config: Path, environment: pytest.MonkeyPatch) -> None:
    config.write_text(
        '[command]\nsizes = { small = 3, large = 30 }\nnodes = ["a:1"]\n[query]\nanything = "is not ours"\n'
    )
    environment.setenv("TANDEM_COMMAND_SIZES__LARGE", "20")
    settings = load_settings(Settings)
    assert settings.sizes == Sizes(small=3, large=20)
    assert settings.nodes == ("a:1",)


def test_a_block_of_the_file_leaves_the_other_defaults_of_that_block(config: Path) -> None:
    config.write_text("[command.server]\nmetrics_port = 9100\n")
    settings = load_settings(Settings)
    assert (settings.server.port, settings.server.metrics_port) == (50051, 9100)


def test_variables_of_other_services_are_left_to_them(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TANDEM_QUERY_WHATEVER", "1")
    assert load_settings(Settings).sizes.small == 2


@pytest.mark.parametrize("service", ["TANDEM_COMMAND", "TANDEM_COMMAND_SERVER", "TANDEM_PROJECTOR_2", "TANDEM_SHOP"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_left_alone(
    environment: pytest.MonkeyPatch, service: str
) -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "50051",
        "SERVICE_PORT_GRPC": "50051",
        "PORT": "tcp://10.0.0.1:50051",
        "PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "PORT_50051_TCP_PROTO": "tcp",
        "PORT_50051_TCP_PORT": "50051",
        "PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    for name, value in links.items():
        environment.setenv(f"{service}_{name}", value)
    assert load_settings(Settings).server.port == 50051
    environment.setenv("TANDEM_COMMAND_SERVER_PORT", "50052")
    assert "TANDEM_COMMAND_SERVER_PORT: unknown environment variable" in problem()


@pytest.mark.parametrize(
    "name", ["TANDEM_COMMAND_SERVER__PROT", "TANDEM_COMMAND_SIZE", "TANDEM_PORT", "tandem_command_sizes__small"]
)
def test_an_unknown_variable_is_refused(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv(name, "7")
    assert f"{name}: unknown environment variable" in problem()


def test_an_unknown_section_of_the_file_is_refused(config: Path) -> None:
    config.write_text("[comand]\n")
    assert "unknown section comand; known: command, query, projector" in problem()


def test_an_unknown_key_of_the_file_is_refused(config: Path) -> None:
    config.write_text("[command.server]\nprot = 1\n")
    assert "command.server.prot" in problem()


@pytest.mark.parametrize("content", ["command = 7\n", "[command\n"])
def test_a_file_of_the_wrong_form_is_refused(config: Path, content: str) -> None:
    config.write_text(content)
    assert str(config) in problem()


def test_a_file_that_is_missing_is_refused(config: Path) -> None:
    assert str(config) in problem()


def test_every_wrong_key_is_named_in_one_message(environment: pytest.MonkeyPatch, config: Path) -> None:
    config.write_text('[command.sizes]\nlarge = "many"\n')
    environment.delenv("TANDEM_COMMAND_DATABASE__URL")
    environment.setenv("TANDEM_COMMAND_SERVER__PORT", "70000")
    environment.setenv("TANDEM_COMMAND_NODES", "127.0.0.1:11211")
    environment.setenv("TANDEM_COMMAND_LOG__LEVEL", "loud")
    environment.setenv("TANDEM_COMMAND_ODD", "1")
    message = problem()
    for name in ("DATABASE", "SERVER__PORT", "NODES", "LOG__LEVEL", "SIZES__LARGE"):
        assert f"(TANDEM_COMMAND_{name}): " in message
    assert "TANDEM_COMMAND_ODD: unknown environment variable" in message
    assert len(message.splitlines()) == 7


def test_native_transport_with_tls_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TANDEM_COMMAND_SERVER__TRANSPORT", "native")
    environment.setenv("TANDEM_COMMAND_SERVER__TLS__CERTIFICATE_FILE", "server.pem")
    environment.setenv("TANDEM_COMMAND_SERVER__TLS__KEY_FILE", "server.key")
    assert "transport native cannot speak TLS" in problem()


def test_secrets_do_not_show() -> None:
    settings = load_settings(Settings)
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.database.url.get_secret_value() == URL


def test_settings_are_frozen() -> None:
    settings = load_settings(Settings)
    with pytest.raises(ValidationError):
        settings.nodes = ("a:1",)  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.sizes.small = 5  # type: ignore[misc]


def test_a_description_says_the_name_the_default_in_force_and_what_it_is() -> None:
    described = {name: (default, text) for name, default, text in configuration.describe(Settings)}
    assert described["TANDEM_COMMAND_DATABASE__URL"][0] == "required"
    assert described["TANDEM_COMMAND_DATABASE__PASSWORD_FILE"][0] == "none"
    assert described["TANDEM_COMMAND_SERVER__PORT"][0] == "50051"
    assert described["TANDEM_COMMAND_SERVER__TLS__…"] == ("none", "Speak TLS (transport grpcio)")
    assert described["TANDEM_COMMAND_SERVER__TLS__KEY_FILE"][0] == "required with tls"
    assert described["TANDEM_COMMAND_SIZES__SMALL"] == ("2", "The small one")
    assert described["TANDEM_COMMAND_SIZES__LARGE"] == ("10", "The large one")
    assert described["TANDEM_COMMAND_NODES"] == ("[]", "Nodes")


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "tandem.internal"])
def test_a_service_beyond_this_machine_asks_who_calls_or_says_that_it_does_not(
    environment: pytest.MonkeyPatch, host: str
) -> None:
    environment.setenv("TANDEM_COMMAND_SERVER__HOST", host)
    assert f"{host} is beyond this machine, and nobody would be asked who he is" in problem()
    assert load_settings(Settings, server={"insecure": True}).server.host == host
    environment.setenv("TANDEM_COMMAND_SERVER__AUTHENTICATION__FORWARDED_CERTIFICATE", "true")
    assert "believes whoever connects" in problem()
    environment.delenv("TANDEM_COMMAND_SERVER__AUTHENTICATION__FORWARDED_CERTIFICATE")
    believing = {"ISSUER": "i", "AUDIENCE": "a", "VERIFIED_BY_SIDECAR": "true"}
    for name, value in believing.items():
        environment.setenv(f"TANDEM_COMMAND_SERVER__AUTHENTICATION__TOKEN__{name}", value)
    assert "token.verified_by_sidecar believes whoever connects" in problem()
    environment.delenv("TANDEM_COMMAND_SERVER__AUTHENTICATION__TOKEN__VERIFIED_BY_SIDECAR")
    for name, value in {"ISSUER": "i", "AUDIENCE": "a", "KEYS_URL": "https://issuer.test/keys"}.items():
        environment.setenv(f"TANDEM_COMMAND_SERVER__AUTHENTICATION__TOKEN__{name}", value)
    assert "policy_file is required" in problem()
    environment.setenv("TANDEM_COMMAND_SERVER__POLICY_FILE", "policy.toml")
    assert load_settings(Settings).server.authenticates
    environment.setenv("TANDEM_COMMAND_SERVER__TRANSPORT", "native")
    assert "native transport has no defence there" in problem()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "unix:/run/tandem.sock"])
def test_a_service_on_this_machine_need_not_ask_who_calls(environment: pytest.MonkeyPatch, host: str) -> None:
    environment.setenv("TANDEM_COMMAND_SERVER__HOST", host)
    assert not load_settings(Settings).server.authenticates
    environment.setenv("TANDEM_COMMAND_SERVER__POLICY_FILE", "policy.toml")
    assert "nobody is asked who he is" in problem()
    environment.setenv("TANDEM_COMMAND_SERVER__AUTHENTICATION__FORWARDED_CERTIFICATE", "true")
    assert load_settings(Settings).server.authenticates


def test_keys_come_from_one_place_that_nobody_else_can_change(environment: pytest.MonkeyPatch) -> None:
    prefix = "TANDEM_COMMAND_SERVER__AUTHENTICATION__TOKEN__"
    environment.setenv(f"{prefix}ISSUER", "i")
    environment.setenv(f"{prefix}AUDIENCE", "a")
    assert "set one of keys_file and keys_url" in problem()
    for url in ("http://issuer.test/keys", "ftp://issuer.test/keys", "issuer.test"):
        environment.setenv(f"{prefix}KEYS_URL", url)
        assert "must begin with https://" in problem()
    environment.setenv(f"{prefix}KEYS_URL", "http://127.0.0.1:8080/keys")
    environment.setenv(f"{prefix}ALGORITHMS", '["HS256"]')
    assert "ALGORITHMS" in problem()


def test_what_a_sidecar_does_with_tokens_is_set_there(environment: pytest.MonkeyPatch) -> None:
    prefix = "TANDEM_COMMAND_SERVER__AUTHENTICATION__TOKEN__"
    for name, value in {"ISSUER": "i", "AUDIENCE": "a", "VERIFIED_BY_SIDECAR": "true"}.items():
        environment.setenv(f"{prefix}{name}", value)
    environment.setenv("TANDEM_COMMAND_SERVER__POLICY_FILE", "policy.toml")
    assert load_settings(Settings).server.authenticates
    environment.setenv(f"{prefix}KEYS_FILE", "keys.json")
    environment.setenv(f"{prefix}OWNER_CLAIM", "customer_id")
    assert "keys_file, owner_claim would not be looked at" in problem()


def test_the_command_lines_own_variables_are_not_looked_at(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TANDEM_CLI_TOKEN_FILE", "/run/token")
    load_settings(Settings)


def test_a_mode_of_tls_that_libpq_does_not_know_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"sslmode=verify_full is none of disable, .*, verify-full"):
        DatabaseSettings(url=SecretStr("postgresql://tandem@db/tandem?sslmode=verify_full"))
