"""The monitor's settings."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from services.common.addresses import validate_address
from services.common.config.settings import Duration, ServiceSettings
from services.common.errors import InvalidRequestError


class MonitorSettings(ServiceSettings):
    """Reports what loaded models do and use, and shuts them down."""

    service: ClassVar[str] = "monitor"

    listen: str = "127.0.0.1:50053"

    loader: str = "127.0.0.1:50051"
    """The address of the loader."""

    metrics: str | None = "127.0.0.1:50054"

    loader_timeout: Duration = 5.0
    """How long the loader may take to answer."""

    status_timeout: Duration = 2.0
    """How long a backend may take to answer Status; after that its state is derived from its process."""

    unload_timeout: Duration = 120.0
    """How long the loader may take to unload a model: its drain time, and the time to kill a
    process that does not stop."""

    sample_timeout: Duration = 2.0
    """How long sampling a process tree may take."""

    sample_interval: Duration = 0.25
    """The shortest time over which CPU use is measured; the system counts it in steps of 10 ms, so a
    shorter time gives no precise value. An earlier sample repeats the last value."""

    start_time_tolerance: Duration = 5.0
    """How far the start time of a process may differ from the one that the loader reports; the system
    knows it to a second only, and clocks are adjusted."""

    sampled_trees: int = Field(default=1000, ge=1)
    """How many process trees to remember, to measure their CPU use since the last sample."""

    @field_validator("loader", mode="after")
    @classmethod
    def _loader(cls, value: str) -> str:
        try:
            return validate_address(value, field="loader")
        except InvalidRequestError as error:
            raise ValueError(error.violations[0].description) from None
