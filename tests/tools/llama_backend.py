"""The real llama-cpp backend for tests: start it, call it, check what it leaves behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from tests.tools.processes import children
from tests.tools.service import ROOT, environment

RUN = ROOT / "backends" / "llama_cpp" / "run.sh"
# Generous: the machine may be busy with other tests.
READY_TIMEOUT = 30.0
CALL_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


def backend_environment(**more: str) -> dict[str, str]:
    """Return the environment that the loader gives a backend."""
    return environment(**{"CORRAL_PYTHON": sys.executable, **more})


class Backend:
    """A running backend process."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.line = ""
        self.address = ""

    @classmethod
    def start(cls, address: str, folder: Path, *, run: Path = RUN, **env: str) -> "Backend":
        """Start it and wait for its ready line."""
        backend = cls.spawn(["--addr", address], folder, run=run, **env)
        backend.read_line()
        return backend

    @classmethod
    def spawn(cls, arguments: list[str], folder: Path, *, run: Path = RUN, **env: str) -> "Backend":
        """Start it without waiting; its stderr goes to a file in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "stderr.log"
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                [str(run), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd="/",
                env=backend_environment(**env),
                start_new_session=True,
            )
        return cls(process, log)

    def read_line(self) -> None:
        """Wait for the ready line and parse its address."""
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        if not self.line.startswith("ready "):
            code = self.stop()
            raise AssertionError(f"no ready line but {self.line!r}, exit {code}: {self.errors()}")
        self.address = self.line.split()[-1]

    def errors(self) -> str:
        """Its stderr so far."""
        return self.log.read_text(errors="replace")

    @property
    def engine(self) -> int:
        """The process that runs llama.cpp."""
        found = children(self.process.pid)
        return found[0] if found else 0

    def stop(self, number: int = signal.SIGTERM, timeout: float = STOP_TIMEOUT) -> int:
        """Send a signal, wait for the process to exit, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()

    @contextlib.contextmanager
    def stub(self) -> "Iterator[backend_pb2_grpc.BackendStub]":
        """A blocking client."""
        with grpc.insecure_channel(self.address) as channel:
            yield backend_pb2_grpc.BackendStub(channel)

    def load(self, model: Path, **options: Any) -> pb.Result:
        """Load a model with a blocking call."""
        options.setdefault("Model", model.name)
        with self.stub() as stub:
            request = pb.ModelOptions(ModelFile=str(model), **options)
            result: pb.Result = stub.LoadModel(request, timeout=CALL_TIMEOUT)
            return result


@contextlib.contextmanager
def backend(address: str, folder: Path, *, run: Path = RUN, **env: str) -> Iterator[Backend]:
    """Start a backend, and stop it at the end."""
    started = Backend.start(address, folder, run=run, **env)
    try:
        yield started
    finally:
        started.stop()
