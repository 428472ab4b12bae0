"""Records of this loader's processes for the next loader, in case this one dies: a small file each.

A record is a hint, never an order: the reader first checks that the process is still the one that
was recorded (`processes.is_process`).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.files import write_atomically
from services.common.process.logging import get_logger

_log = get_logger(__name__)

_UID = r"^[0-9a-f]{32}$"
_LARGEST = 256 * 1024
"""Bytes; a record has some hundred, and the backend's answer to its load."""
_SUFFIX = ".json"


class ProcessRecord(BaseModel):
    """One backend process and the instance it holds."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    uid: str = Field(pattern=_UID)
    """The instance's uid; also the value of the marker in its processes' environment."""
    pid: int = Field(gt=1, lt=2**31)
    """Pid of the first process, which is also the group's id."""
    birth: str = Field(min_length=1)
    """See `processes.birth`."""
    loader: str = Field(pattern=_UID)
    """The loader that has it."""
    model: str = Field(min_length=1)
    model_revision: str
    backend: str = Field(min_length=1)
    backend_revision: str
    """Its program and metadata, as in `Backend.revision`."""
    run_file: str
    address: str = Field(min_length=1)
    token: str = Field(repr=False)
    generation: int = Field(ge=0, lt=2**63)
    started: float
    """Seconds since the epoch, as `ready`."""
    ready: float | None
    load_message: str
    adoptable: bool
    """It is ready, and another loader can go on reading its output."""


class ProcessRegistry:
    """The records of a state folder, and the ids of the loaders that wrote there.

    A loader's id is there from before its first process until a later loader has dealt with all
    that it left: processes that died before they could be recorded carry it in their environment.
    """

    def __init__(self, folder: Path, loader: str) -> None:
        """Use a folder that this loader, of this id, has locked (see `state_lock`)."""
        self.loader = loader
        self._records = folder / "instances"
        self._loaders = folder / "loaders"

    def open(self) -> tuple[set[str], list[ProcessRecord]]:
        """Record this loader's id; return those of earlier loaders, and all records.

        Unreadable records are removed. Raises OSError if the folder cannot be written to.
        """
        for folder in (self._records, self._loaders):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        earlier = {path.name for path in self._loaders.iterdir()} - {self.loader}
        (self._loaders / self.loader).touch(mode=0o600)
        found = [self._read(path) for path in sorted(self._records.iterdir())]
        return earlier, [record for record in found if record is not None]

    def close(self) -> None:
        """Forget this loader's id, if it has no processes left."""
        if not any(self._records.glob(f"*{_SUFFIX}")):
            self.forget({self.loader})

    def forget(self, loaders: set[str]) -> None:
        """Forget loaders that have no processes left."""
        for loader in loaders:
            with suppress(OSError):
                (self._loaders / loader).unlink()

    def write(self, record: ProcessRecord) -> bool:
        """Write or replace the record of a process; False if it cannot be written."""
        path = self._path(record.uid)
        try:
            # Only for this user: it holds the token. Whole or not at all: this process may end here.
            write_atomically(path, record.model_dump_json())
        except (OSError, ValueError) as error:  # the latter: a name that is no text
            _log.warning("a process cannot be recorded", pid=record.pid, why=str(error))
            return False
        return True

    def remove(self, uid: str) -> None:
        """Forget a process that has fully ended."""
        with suppress(OSError):
            self._path(uid).unlink()

    def _path(self, uid: str) -> Path:
        return self._records / f"{uid}{_SUFFIX}"

    def _read(self, path: Path) -> ProcessRecord | None:
        try:
            if path.suffix == _SUFFIX and path.stat().st_size <= _LARGEST:
                record = ProcessRecord.model_validate_json(path.read_bytes())
                if record.uid == path.stem:
                    return record
        except (OSError, ValueError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        else:
            why = "it is not named after its instance, or too large"
        _log.warning("a broken record of a process is removed", file=str(path), why=why)
        with suppress(OSError):
            path.unlink()
        return None
