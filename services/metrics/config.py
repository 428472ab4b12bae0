"""The metrics service's settings."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from services.common.addresses import validate_address
from services.common.config.settings import Duration, ServiceSettings
from services.common.errors import InvalidRequestError
from services.metrics.values.collector import MOST_SERIES


class MetricsSettings(ServiceSettings):
    """Collects what every service measures, and exports it to Prometheus and over OTLP."""

    service: ClassVar[str] = "metrics"

    listen: str = "127.0.0.1:50054"

    http_listen: str = "127.0.0.1:9464"
    """The address to serve /metrics on over HTTP; port 0 takes a free one, which is then
    written to <state_path>/metrics/http_address."""

    max_label_values: int = Field(default=200, ge=1)
    """How many values a label of api_call can have; calls with later ones count under `other`."""

    max_series: int = Field(default=1000, ge=1, le=MOST_SERIES)
    """How many series api_call can have; calls with later label sets count under `other`."""

    max_label_length: int = Field(default=256, ge=16)
    """How many characters a label's value can have; longer ones are refused."""

    max_otlp_series: int = Field(default=10_000, ge=1)
    """How many series can be received over OTLP; points of further ones are refused."""

    otlp_stale_after: Duration = 900.0
    """How long an OTLP sender may be silent before another one can replace it; exporters send every
    10 to 60 s."""

    otlp_endpoint: str | None = None
    """The address of another OpenTelemetry collector (OTLP over gRPC, plaintext) to send all values
    to; empty for none."""

    otlp_interval: Duration = Field(default=60.0, gt=0)
    """How often to send all values to otlp_endpoint."""

    otlp_timeout: Duration = 3.0
    """How long otlp_endpoint may take to answer; a stop may wait for two answers, within stop_timeout."""

    http_head_timeout: Duration = 75.0
    """How long an HTTP client may take to send its next request; Prometheus sends one every 15 to 60 s
    over the same connection."""

    http_scrape_timeout: Duration = 10.0
    """How long rendering a scrape may take; Prometheus gives up after 10 s."""

    http_send_timeout: Duration = 10.0
    """How long a client may take to receive an answer."""

    http_close_timeout: Duration = 2.0
    """How long a stop waits for scrapes in progress."""

    http_max_connections: int = Field(default=64, ge=1)
    """How many HTTP connections may be open; further ones get 503."""

    stream_quiet: Duration = 0.2
    """How long a stop waits for further messages of an open ObserveApiCalls before it answers."""

    query_timeout: Duration = 10.0
    """How long reading all values may take."""

    @field_validator("http_listen", mode="after")
    @classmethod
    def _http_listen(cls, value: str) -> str:
        return _address(value, listen=True)

    @field_validator("otlp_endpoint", mode="after")
    @classmethod
    def _otlp_endpoint(cls, value: str | None) -> str | None:
        return _address(value, listen=False) if value else None


def _address(text: str, *, listen: bool) -> str:
    try:
        return validate_address(text, listen=listen)
    except InvalidRequestError as error:
        raise ValueError(error.violations[0].description) from None
