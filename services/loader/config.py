"""The loader's settings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from services.common.config.settings import (
    ByteSize,
    Duration,
    NameUris,
    ServiceSettings,
    UnderHome,
    localai,
)
from services.common.process.bundled import bundled_backends
from services.common.process.event_loop import EventLoop

from .live_settings import Tunables


class _BackendFolders(UnderHome):
    # A setting with several folders needs a list where its parent gives one.
    def __call__(self) -> list[Path]:  # type: ignore[override]
        return [super().__call__(), bundled_backends()]

    def __str__(self) -> str:
        return "<home>/backends and the bundled backends"


class _RuntimeFolder(UnderHome):
    # CORRAL_HOME separates one loader from another: its sockets belong inside it as well.
    def __call__(self) -> Path:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if runtime and not os.environ.get("CORRAL_HOME", "").strip():
            return Path(runtime) / "corral"
        return super().__call__()

    def __str__(self) -> str:
        return f"$XDG_RUNTIME_DIR/corral, or {super().__str__()}"


_MODE = re.compile(r"0?[0-7]{3}")
_PORTS = re.compile(r"(\d{1,5})\s*-\s*(\d{1,5})")


class LoaderSettings(ServiceSettings, Tunables):
    """Finds, starts, supervises and unloads native model backends."""

    model_config = ServiceSettings.model_config

    service: ClassVar[str] = "loader"

    listen: str = "127.0.0.1:50051"
    """The address to serve on: host:port (port 0 takes a free one), [::1]:port, or unix:/path."""

    metrics: str | None = "127.0.0.1:50054"
    """The address of the metrics service to report calls to; empty for none."""

    event_loop: EventLoop = "auto"
    """The event loop: uvloop (a fifth less processor time per call), asyncio, or uvloop if installed (auto)."""

    stop_timeout: Duration = 30.0
    """How long a stopping loader waits for its backends to end before it exits and its guard kills them."""

    models_path: Annotated[Path, localai("LOCALAI_MODELS_PATH", "MODELS_PATH")] = Field(
        default_factory=UnderHome("models")
    )
    """The folder with the model configurations and model files."""

    models_interval: Duration = 1.0
    """How often to scan the models folder; most changes are noticed at once, those on network folders by scans."""

    backends_path: Annotated[list[Path], localai("LOCALAI_BACKENDS_PATH", "BACKENDS_PATH")] = Field(
        default_factory=_BackendFolders("backends")
    )
    """Folders with installed backends, searched in this order."""

    backends_system_path: Annotated[
        Path, localai("LOCALAI_BACKENDS_SYSTEM_PATH", "BACKEND_SYSTEM_PATH")
    ] = Path("/var/lib/local-ai/backends")
    """The folder with the system's backends, which is only read; backends in backends_path take precedence."""

    backend_assets_path: Annotated[
        Path | None, localai("LOCALAI_BACKEND_ASSETS_PATH", "BACKEND_ASSETS_PATH")
    ] = None
    """The asset folder of a LocalAI 2 installation, which contains `backend-assets`; empty for none."""

    disable_autodetect: Annotated[bool, localai("DISABLE_AUTODETECT")] = False
    """Choose llama.cpp variants in backend_assets_path by name only, not by what this machine supports."""

    llamacpp_grpc_servers: Annotated[str, localai("LLAMACPP_GRPC_SERVERS")] = ""
    """Machines to which the llama.cpp variant in backend_assets_path distributes work; empty for none."""

    backends_interval: Duration = 1.0
    """How often to scan for backends that were added, removed or changed."""

    external_backend: Annotated[
        NameUris,
        localai(
            "LOCALAI_EXTERNAL_GRPC_BACKENDS",
            "EXTERNAL_GRPC_BACKENDS",
            flags=("--external-grpc-backends",),
        ),
    ] = Field(default_factory=dict)
    """Backends that are not installed: the path of a program, or the address of a running backend."""

    localai_config_dir: Annotated[Path, localai("LOCALAI_CONFIG_DIR")] = Field(
        default_factory=UnderHome("configuration")
    )
    """The folder with `external_backends.json`, a map like external_backend; changes to it are followed."""

    external_token: Annotated[SecretStr, localai("LOCALAI_GRPC_AUTH_TOKEN")] = SecretStr("")
    """The bearer token for external backends at an address; empty for none."""

    llamacpp_parallel: Annotated[int, localai("LLAMACPP_PARALLEL")] = Field(default=0, ge=0)
    """llama.cpp slots for models that do not set them; 0 chooses by the GPUs' memory (1 without a GPU)."""

    disable_guessing: Annotated[bool, localai("LOCALAI_DISABLE_GUESSING")] = False
    """Do not read defaults for options that a model's configuration leaves open from its GGUF file."""

    disable_hardware_defaults: Annotated[bool, localai("LOCALAI_DISABLE_HARDWARE_DEFAULTS")] = False
    """Do not choose any option by the machine's GPUs."""

    xpu: Annotated[bool, localai("XPU")] = False
    """The GPUs are Intel's: do not map model files into memory unless the model's configuration asks for it."""

    models_config_file: Annotated[
        Path | None, localai("LOCALAI_MODELS_CONFIG_FILE", "CONFIG_FILE")
    ] = None
    """A YAML file with a list of models, added to those in the models folder, which take precedence."""

    start_attempts: int = Field(default=20, ge=1)
    """With start_interval, how long a backend may take to answer; LocalAI's `grpc.attempts` overrides."""

    start_interval: Duration = 2.0
    """See start_attempts; LocalAI's `grpc.attempts_sleep_time` overrides."""

    health_timeout: Duration = 10.0
    """How long one Health call to a starting backend may take."""

    load_timeout: Duration = 300.0
    """How long a backend may take to load a model; load_timeout_per_gib is added to it."""

    load_timeout_per_gib: Duration = 20.0
    """Time added to load_timeout for each GiB of the model's file."""

    load_stall_timeout: Duration = 120.0
    """How long a loading backend may do nothing at all before the load fails."""

    drain_timeout: Duration = 30.0
    """How long an unload waits for running calls to end."""

    direct_lease: Duration = Field(default=30.0, gt=0)
    """How long a lease of ResolveModel lasts if the client asks for no duration."""

    direct_lease_maximum: Duration = Field(default=600.0, gt=0)
    """The longest lease of ResolveModel, and so the longest time a vanished client can block an unload."""

    direct_leases: int = Field(default=1000, ge=0)
    """The most leases of ResolveModel and HoldModel at a time, over all models."""

    force_backend_shutdown: Annotated[bool, localai("LOCALAI_FORCE_BACKEND_SHUTDOWN")] = False
    """Cut the calls that are still running when drain_timeout ends, instead of refusing to unload."""

    load_to_memory: Annotated[list[str], localai("LOCALAI_LOAD_TO_MEMORY", "LOAD_TO_MEMORY")] = (
        Field(default_factory=list)
    )
    """Models to load at startup, in parallel; the log reports those that cannot be loaded."""

    free_timeout: Duration = 5.0
    """How long a backend may take to release its model before it is stopped."""

    terminate_timeout: Duration = 10.0
    """How long a backend may take to end after SIGTERM before it is killed."""

    kill_timeout: Duration = 5.0
    """How long the system may take to remove a process group after SIGKILL."""

    release_timeout: Duration = 5.0
    """How long a GPU's driver may take to free the memory of an ended backend."""

    adoption: Literal["off", "crash", "restart"] = "off"
    """Whether ready backends outlive the loader, so that its next start can adopt them without loading
    their models again: never (off), when it is killed (crash), or also when it is stopped (restart).
    Backends that watch their parent process are started in a way that disables this."""

    adoption_timeout: Duration = 60.0
    """How long backends left for adoption wait for a loader with the same state folder before they are
    ended. An adopted backend must answer Health within health_timeout."""

    exit_cause_timeout: Duration = 0.5
    """How long a call that was cut waits for the cause of the backend's end."""

    model_endpoints: Literal["on", "off"] = "on"
    """Whether each model has its own address, at which it behaves like a plain backend."""

    runtime_path: Path = Field(default_factory=_RuntimeFolder("run"))
    """The folder for the models' sockets, `models/<name>.sock`; no other loader may use it."""

    endpoint_mode: str = "0600"
    """The octal permissions of the models' sockets; write permission allows calls. Folder permissions match."""

    endpoint_ports: str = ""
    """Loopback ports for models with `endpoint: {port: auto}`, for example 9100-9199; empty for none."""

    endpoint_limit: int = Field(default=10_000, ge=1)
    """The most models with an endpoint; models that ask for one in their YAML come first."""

    endpoint_linger: Duration = 2.0
    """How long a client that was asked to reconnect may take to close its connection to an endpoint."""

    endpoint_handshake_timeout: Duration = 20.0
    """How long a client of an endpoint may take to send its HTTP/2 preface."""

    endpoint_connect_timeout: Duration = 5.0
    """How long an endpoint may take to connect to a ready backend."""

    load_backoff_maximum: Duration = 300.0
    """The longest time to wait before a backend is tried again after failed loads."""

    quarantine_time: Duration = 600.0
    """How long a model is not loaded after five crashes in a row without being ready for stable_time."""

    measure_interval: Duration = 10.0
    """How often to measure the memory of loaded models."""

    stable_time: Duration = 10.0
    """How long a model must be ready before its earlier crashes and failures are forgotten."""

    log_lines: int = Field(default=1000, ge=1)
    """Lines of backend output to keep in memory for each model; none are written to disk."""

    log_bytes: ByteSize = Field(default=4 * 1024**2, ge=64 * 1024)
    """The most memory for these lines (log_lines), per model."""

    watch_history: int = Field(default=4096, ge=1)
    """Model changes to keep for clients that resume a watch."""

    @field_validator("adoption", mode="before")
    @classmethod
    def _adoption(cls, value: Any) -> Any:
        return "off" if value is False else value  # so YAML reads `adoption: off`

    @field_validator("model_endpoints", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("endpoint_mode", mode="before")
    @classmethod
    def _octal(cls, value: Any) -> Any:
        text = f"{value:04o}" if isinstance(value, int) else value  # YAML reads 0600 as octal
        if isinstance(text, str) and not _MODE.fullmatch(text):
            raise ValueError(f"{text!r} is no mode of a file; write it octal, such as 0600 or 0660")
        return text

    @field_validator("endpoint_ports")
    @classmethod
    def _range(cls, value: str) -> str:
        found = _PORTS.fullmatch(value.strip())
        if value.strip() and not (found and 0 < int(found[1]) <= int(found[2]) < 65536):
            raise ValueError(f"{value!r} is no range of ports; write FIRST-LAST, such as 9100-9199")
        return value

    @property
    def ports(self) -> range:
        """The ports of endpoint_ports."""
        found = _PORTS.fullmatch(self.endpoint_ports.strip())
        return range(int(found[1]), int(found[2]) + 1) if found else range(0)
