"""Settings: the order of their sources, the texts of their errors, their documentation."""

import textwrap
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from pydantic import Field, ValidationError

from services.common.config import sources as config_sources
from services.common.config.settings import (
    ByteSize,
    ConfigError,
    Duration,
    NameUris,
    ServiceSettings,
    UnderHome,
    corral_home,
    describe,
    help_text,
    localai,
)


class ToySettings(ServiceSettings):
    """A service made for these tests.

    Second paragraph.
    """

    service: ClassVar[str] = "toy"

    listen: str = "127.0.0.1:50051"

    models_path: Annotated[Path, localai("LOCALAI_MODELS_PATH", "MODELS_PATH")] = Field(
        default_factory=UnderHome("models")
    )
    """Where the models are."""

    backends_path: tuple[Path, ...] = ()
    """Where the backends are."""

    external_backend: Annotated[
        NameUris, localai("LOCALAI_EXTERNAL_BACKENDS", flags=("--external-grpc-backends",))
    ] = Field(default_factory=dict)
    """Backends that run already."""

    watchdog: Annotated[bool, localai("LOCALAI_WATCHDOG_IDLE")] = False
    """Whether to watch."""

    idle: Duration | None = None
    """How long is idle."""

    budget: ByteSize = 1 << 30
    """How much memory."""

    tries: int = Field(default=3, ge=1)
    """How often."""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("CORRAL_", "LOCALAI_")) or name == "MODELS_PATH":
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str, name: str = "corral.yaml") -> str:
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORRAL_HOME", str(tmp_path))
    settings = ToySettings.load([])
    assert settings.models_path == tmp_path / "models"
    assert settings.state_path == tmp_path / "state"
    assert (settings.listen, settings.metrics, settings.idle) == ("127.0.0.1:50051", None, None)
    assert settings.max_message_size == 50 * 1024 * 1024
    with pytest.raises(ValidationError):
        settings.listen = "x"


def test_home_is_the_users_data_folder_unless_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert corral_home() == Path("/data/corral")
    monkeypatch.setenv("CORRAL_HOME", "~/c")
    assert corral_home() == Path.home() / "c"


# Each row takes one more source away, from the highest to the lowest.
SOURCES = ["flag", "env", "localai", "localai-old", "file-section", "file-top", "default"]


@pytest.mark.parametrize("highest", range(len(SOURCES)))
def test_precedence(highest: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    present = SOURCES[highest:]
    monkeypatch.setenv("CORRAL_HOME", "/default-home")
    argv = []
    if "flag" in present:
        argv += ["--models-path", "/flag"]
    if "env" in present:
        monkeypatch.setenv("CORRAL_TOY_MODELS_PATH", "/env")
    if "localai" in present:
        monkeypatch.setenv("LOCALAI_MODELS_PATH", "/localai")
    if "localai-old" in present:
        monkeypatch.setenv("MODELS_PATH", "/localai-old")
    text = ""
    if "file-top" in present:
        text += "models_path: /file-top\n"
    if "file-section" in present:
        text += "toy:\n  models-path: /file-section\n"
    argv += ["--config", write(tmp_path, text)]
    expected = {"default": "/default-home/models"}.get(present[0], f"/{present[0]}")
    assert str(ToySettings.load(argv).models_path) == expected


def test_flags_of_every_shape() -> None:
    settings = ToySettings.load(
        [
            "--backends-path=/a",
            "--backends-path",
            "/b,c",
            "--external-backend",
            "x=1.2.3.4:5",
            "--external-grpc-backends=y:/opt/y",
            "--watchdog",
            "--idle",
            "1h30m",
            "--budget=2GiB",
            "--log-level=WARNING",
            "--log-format=text",
            "--metrics=",
        ]
    )
    assert settings.backends_path == (Path("/a"), Path("/b,c"))
    assert settings.external_backend == {"x": "1.2.3.4:5", "y": "/opt/y"}
    assert settings.watchdog is True
    assert settings.idle == 5400
    assert settings.budget == 2 << 30
    assert (settings.log_level, settings.log_format) == ("warn", "console")
    assert settings.metrics is None
    assert ToySettings.load(["--watchdog", "--no-watchdog"]).watchdog is False
    assert ToySettings.load(["--watchdog=false"]).watchdog is False
    assert ToySettings.load(["--idle="]).idle is None


def test_variables_of_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_TOY_BACKENDS_PATH", "/a, ~/b,")
    monkeypatch.setenv("LOCALAI_EXTERNAL_BACKENDS", "x:1.2.3.4:5,y:/opt/y")
    monkeypatch.setenv("LOCALAI_WATCHDOG_IDLE", "true")
    monkeypatch.setenv("LOCALAI_MODELS_PATH", "")
    monkeypatch.setenv("CORRAL_HOME", "/h")
    settings = ToySettings.load([])
    assert settings.backends_path == (Path("/a"), Path.home() / "b")
    assert settings.external_backend == {"x": "1.2.3.4:5", "y": "/opt/y"}
    assert settings.watchdog is True
    assert settings.models_path == Path("/h/models")


def test_files_of_every_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toml = write(
        tmp_path,
        """
        log-level = "debug"
        [toy]
        backends_path = ["/a", "b"]
        idle = "5m"
        watchdog = true
        [toy.external_backend]
        x = "1.2.3.4:5"
        """,
        "corral.toml",
    )
    settings = ToySettings.load(["--config", toml])
    assert settings.log_level == "debug"
    assert settings.backends_path == (Path("/a"), tmp_path / "b")
    assert (settings.idle, settings.watchdog) == (300, True)
    assert settings.external_backend == {"x": "1.2.3.4:5"}
    monkeypatch.setenv("CORRAL_CONFIG", toml)
    assert ToySettings.load([]).log_level == "debug"
    assert ToySettings.load(["--config", write(tmp_path, "")]).log_level == "info"


def test_another_services_settings_are_not_our_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_sources, "sibling_fields", lambda: {"other": ("galleries",)})
    file = write(tmp_path, "galleries: [a]\nother:\n  whatever: 1\nlog_level: debug\n")
    assert ToySettings.load(["--config", file]).log_level == "debug"


def test_metrics_is_a_setting_and_a_section(tmp_path: Path) -> None:
    file = write(tmp_path, "metrics: 127.0.0.1:50054\n")
    assert ToySettings.load(["--config", file]).metrics == "127.0.0.1:50054"
    file = write(tmp_path, "metrics:\n  http_listen: 127.0.0.1:9464\ntoy:\n  metrics: a:1\n")
    assert ToySettings.load(["--config", file]).metrics == "a:1"

    class MetricsSettings(ServiceSettings):
        service: ClassVar[str] = "metrics"

    file = write(tmp_path, "metrics:\n  log_level: debug\n")
    assert MetricsSettings.load(["--config", file]).log_level == "debug"
    file = write(tmp_path, "metrics: 127.0.0.1:50054\n")
    assert MetricsSettings.load(["--config", file]).metrics == "127.0.0.1:50054"


def test_the_services_of_this_distribution_are_found() -> None:
    found = config_sources.sibling_fields()
    assert "common" not in found
    assert "service" not in found
    assert all("listen" in fields for fields in found.values())
    assert set(found) <= set(config_sources.sibling_names())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("toy: {modles_path: /x}", "toy.modles_path: no such setting; did you mean models_path?"),
        ("modles_path: /x", "modles_path: no such setting; did you mean models_path?"),
        ("toy: [a]", "toy: must hold keys and values"),
        ("- a", "must hold keys and values"),
        ("a: [", "corral.yaml: is not YAML: a missing value (line 1"),
        ("toy: {idle: soon}", "toy.idle: 'soon' is not a duration"),
        ("toy: {tries: 0}", "toy.tries: input should be greater than or equal to 1"),
    ],
)
def test_mistakes_in_a_file(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="corral-toy: ") as caught:
        ToySettings.load(["--config", write(tmp_path, text)])
    assert complaint in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="--config /none.yaml: No such file"):
        ToySettings.load(["--config", "/none.yaml"])


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--listen", ""], "--listen: is empty; write host:port"),
        (["--listen", "50051"], "--listen: '50051' has no port"),
        (["--metrics", "nowhere"], "--metrics: 'nowhere' has no port"),
        (["--listen"], "--listen: needs a value"),
        (["--listen", "--watchdog"], "--listen: needs a value"),
        (["--lisen=x"], "--lisen: no such flag; did you mean --listen?"),
        (["serve"], "'serve': not expected"),
        (["--tries", "many"], "--tries: input should be a valid integer"),
        (["--models-path="], "--models-path: is empty"),
        (["--grace=-1s"], "--grace: '-1s' is not a duration"),
        (["--external-backend=x"], "--external-backend: 'x' is not NAME=URI"),
        (["--log-level=loud"], "--log-level: input should be 'trace', 'debug'"),
        (["--config="], "--config: needs the name of a file"),
        (["--watchdog=perhaps"], "--watchdog: input should be a valid boolean"),
    ],
)
def test_mistakes_in_flags(argv: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ToySettings.load(argv)
    assert complaint in str(caught.value)
    assert str(caught.value).endswith("See corral-toy --help.")


def test_all_mistakes_are_reported_at_once_with_their_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CORRAL_TOY_GRACE", "long")
    monkeypatch.setenv("CORRAL_TOY_LISTEN", "")
    with pytest.raises(ConfigError) as caught:
        ToySettings.load(["--tries=0", "--nonsense"])
    assert len(caught.value.problems) == 4
    text = str(caught.value)
    assert "CORRAL_TOY_GRACE: 'long' is not a duration" in text
    assert "(set --grace or CORRAL_TOY_GRACE)" in text
    assert "CORRAL_TOY_LISTEN: is empty" in text


def test_a_plain_constructor_call_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRAL_TOY_TRIES", "9")
    monkeypatch.setenv("TRIES", "9")
    assert ToySettings(models_path=Path("m")).tries == 3
    assert ToySettings(models_path=Path("m")).models_path == Path.cwd() / "m"
    with pytest.raises(ValidationError):
        ToySettings(nonsense=1)  # type: ignore[call-arg]


def test_every_setting_is_documented() -> None:
    docs = {doc.name: doc for doc in describe(ToySettings)}
    assert all(doc.help and doc.type for doc in docs.values())
    models = docs["models_path"]
    assert models.flag == "--models-path"
    assert models.env == "CORRAL_TOY_MODELS_PATH"
    assert models.localai_env == ("LOCALAI_MODELS_PATH", "MODELS_PATH")
    assert (models.type, models.default) == ("path", "<home>/models")
    # A changed default keeps the help of the base.
    assert docs["listen"].default == "127.0.0.1:50051"
    assert "address to serve on" in docs["listen"].help
    shown = {name: (doc.type, doc.default) for name, doc in docs.items()}
    assert shown["idle"] == ("duration", "")
    assert shown["grace"] == ("duration", "30s")
    assert shown["budget"] == ("size", "1GiB")
    assert shown["watchdog"] == ("bool", "false")
    assert shown["external_backend"] == ("NAME=URI", "")
    assert shown["backends_path"] == ("path", "")
    assert docs["backends_path"].repeatable
    assert shown["log_format"] == ("console|json", "console")
    assert describe(ServiceSettings)[0].env == "CORRAL_SERVICE_LISTEN"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ToySettings.load(["--tries=x", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text == help_text(ToySettings)
    assert text.startswith("usage: corral-toy ")
    assert "A service made for these tests." in text
    assert "--watchdog, --no-watchdog" in text
    assert "CORRAL_TOY_EXTERNAL_BACKEND, LOCALAI_EXTERNAL_BACKENDS" in text
    assert max(map(len, text.splitlines())) <= 100
    with pytest.raises(SystemExit):
        ToySettings.load(["--version"])
    assert capsys.readouterr().out.startswith("corral-toy 0.")
