"""The supervisors of all models that were ever requested."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from services.loader.logs.log_book import LogBook

from .dependencies import SupervisorDependencies
from .supervisor import Supervisor


class Fleet:
    """Creates supervisors, and finds them by model name."""

    def __init__(
        self, dependencies: SupervisorDependencies, *, log_lines: int, log_bytes: int
    ) -> None:
        """`log_lines` and `log_bytes` limit the output kept for each model."""
        self._dependencies = dependencies
        self._log_lines = log_lines
        self._log_bytes = log_bytes
        self._supervisors: dict[str, Supervisor] = {}
        self._listeners: list[Callable[[Supervisor], None]] = []

    def listen(self, listener: Callable[[Supervisor], None]) -> None:
        """Call `listener` after every transition of a model, when its state can be read."""
        self._listeners.append(listener)

    def get(self, name: str) -> Supervisor | None:
        """Return the model's supervisor; None if the model was never requested."""
        return self._supervisors.get(name)

    def ensure(self, name: str) -> Supervisor:
        """Return the model's supervisor, creating it on first use."""
        supervisor = self._supervisors.get(name)
        if supervisor is None:
            logs = LogBook(self._log_lines, self._log_bytes)
            supervisor = Supervisor(
                name, dependencies=self._dependencies, logs=logs, changed=self._changed
            )
            self._supervisors[name] = supervisor
        return supervisor

    def remove(self, name: str) -> None:
        """Forget the supervisor of a model whose instance was left for the next loader."""
        del self._supervisors[name]

    def names(self) -> tuple[str, ...]:
        """Return the names of the models."""
        return tuple(self._supervisors)

    def __iter__(self) -> Iterator[Supervisor]:
        """Iterate over the supervisors that exist now."""
        return iter(tuple(self._supervisors.values()))

    def _changed(self, supervisor: Supervisor) -> None:
        for listener in self._listeners:
            listener(supervisor)
