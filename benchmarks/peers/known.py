"""The known peers: the program that serves each one's echo, and the settings that differ from its defaults."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from corral.backend import backend_pb2

from .environment import Environment
from .peer import PROGRAMS, Command, Peer, Place

ROOT = Path(__file__).resolve().parents[2]
KSERVE = "/inference.GRPCInferenceService/ModelInfer"

_MLSERVER = Environment("mlserver")
# Triton's stub for Python models links the system's libpython.
_TRITON = Environment(
    "triton", "/usr/bin/python3.11", "apt-get install python3.11-venv libpython3.11"
)
_BENTOML = Environment("bentoml")
_RAY = Environment("ray")


def _mlserver(place: Place, *, workers: int) -> Command:
    shutil.copy(PROGRAMS / "mlserver_echo.py", place.folder)
    http, metrics = place.other_ports
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "grpc_port": place.port,
        "http_port": http,
        "metrics_port": metrics,
        "parallel_workers": workers,
    }
    model = {"name": "echo", "implementation": "mlserver_echo.Echo"}
    (place.folder / "settings.json").write_text(json.dumps(settings))
    (place.folder / "model-settings.json").write_text(json.dumps(model))
    return Command([place.environment.folder / "bin" / "mlserver", "start", place.folder])


def _triton(place: Place) -> Command:
    shipped = place.environment.packages / "pytriton" / "tritonserver"
    backends = place.folder / "backends"
    shutil.copytree(shipped / "backends", backends)
    stub = "triton_python_backend_stub"
    shutil.copy(shipped / "python_backend_stubs" / "3.11" / stub, backends / "python" / stub)
    model = place.folder / "models" / "echo"
    (model / "1").mkdir(parents=True)
    shutil.copy(PROGRAMS / "triton_echo.py", model / "1" / "model.py")
    shutil.copy(PROGRAMS / "triton_echo.pbtxt", model / "config.pbtxt")
    http, metrics = place.other_ports
    return Command(
        [
            shipped / "bin" / "tritonserver",
            f"--model-repository={model.parent}",
            f"--backend-directory={backends}",
            f"--grpc-port={place.port}",
            f"--http-port={http}",
            f"--metrics-port={metrics}",
            "--grpc-address=127.0.0.1",
            "--http-address=127.0.0.1",
            "--metrics-address=127.0.0.1",
        ],
        {
            "LD_LIBRARY_PATH": str(place.environment.packages / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(place.environment.packages),
        },
    )


def _pytriton(place: Place) -> Command:
    program = [place.environment.python, PROGRAMS / "pytriton_echo.py"]
    ports = map(str, (place.port, *place.other_ports))
    return Command([*program, *ports], {"PYTRITON_HOME": str(place.folder / "home")})


def _bentoml(place: Place) -> Command:
    shutil.copy(PROGRAMS / "bentoml_echo.py", place.folder)
    where = ["--host", "127.0.0.1", "--port", str(place.port)]
    program = place.environment.folder / "bin" / "bentoml"
    metrics, _ = place.other_ports
    return Command(
        [program, "serve-grpc", "bentoml_echo:service", *where, "--working-dir", place.folder],
        {
            "BENTOML_HOME": str(place.folder / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_CONFIG_OPTIONS": (
                f"api_server.grpc.metrics.port={metrics} api_server.grpc.metrics.host=127.0.0.1"
                " api_server.logging.access.enabled=false"
            ),
        },
    )


def _ray(place: Place) -> Command:
    http, _ = place.other_ports
    program = [place.environment.python, PROGRAMS / "ray_echo.py"]
    return Command(
        [*program, str(place.port), str(http), str(place.folder / "ray")],
        # Its proxy and its replica import our stubs: it serves our own method.
        {"PYTHONPATH": str(ROOT / "sdk" / "python"), "RAY_USAGE_STATS_ENABLED": "0"},
    )


def _predict(payload: bytes) -> bytes:
    return backend_pb2.PredictOptions(Prompt=payload.decode()).SerializeToString()


PEERS: dict[str, Peer] = {
    "mlserver": Peer(
        "MLServer, in process",
        "parallel_workers 0, debug off (no access log)",
        _MLSERVER,
        KSERVE,
        partial(_mlserver, workers=0),
        "mlserver_request.py",
    ),
    "mlserver-worker": Peer(
        "MLServer, parallel worker",
        "parallel_workers 1 (its default), debug off (no access log)",
        _MLSERVER,
        KSERVE,
        partial(_mlserver, workers=1),
        "mlserver_request.py",
    ),
    "triton": Peer(
        "Triton, Python backend",
        "nothing; a tensor of UINT8, sent raw",
        _TRITON,
        KSERVE,
        _triton,
        "triton_request.py",
    ),
    "pytriton": Peer(
        "Triton through pytriton",
        "no batching; a tensor of UINT8, sent raw",
        _TRITON,
        KSERVE,
        _pytriton,
        "triton_request.py",
    ),
    "bentoml": Peer(
        "BentoML serve-grpc",
        "no access log; as many workers as processors (its default)",
        _BENTOML,
        "/bentoml.grpc.v1.BentoService/Call",
        _bentoml,
        "bentoml_request.py",
    ),
    "ray": Peer(
        "Ray Serve, gRPC ingress",
        "one replica (its default), no access log; serves backend.Backend",
        _RAY,
        "/backend.Backend/Predict",
        _ray,
        _predict,
        (("application", "default"),),
    ),
}
"""By the name on the command line."""
