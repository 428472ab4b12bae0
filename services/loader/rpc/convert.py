"""Converts between the loader's types and the messages on the wire."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from corral.loader.v1 import loader_pb2 as pb
from services.common.errors import InvalidRequestError
from services.common.names import BACKENDS, MODELS, resource_name
from services.common.rpc.times import duration, in_seconds, timestamp
from services.loader.backends.backend import Backend, Source
from services.loader.direct.resolver import Resolution
from services.loader.logs.log_book import Level, LogLine, LogNews, LogQuery, Stream
from services.loader.memory.reservation import Basis
from services.loader.scheduling.occupancy import LastUnload
from services.loader.views.model import InstanceView, ModelFilter, ModelView

_STREAMS = {
    Stream.STDOUT: pb.LogLine.STREAM_STDOUT,
    Stream.STDERR: pb.LogLine.STREAM_STDERR,
    Stream.LOADER: pb.LogLine.STREAM_LOADER,
}
_STREAM_NUMBERS = {number: stream for stream, number in _STREAMS.items()}

_SOURCES = {
    Source.EXTERNAL: pb.Backend.SOURCE_EXTERNAL,
    Source.USER: pb.Backend.SOURCE_USER,
    Source.ASSETS: pb.Backend.SOURCE_ASSETS,
    Source.SYSTEM: pb.Backend.SOURCE_SYSTEM,
    Source.BUNDLED: pb.Backend.SOURCE_BUNDLED,
}


def seconds(field: str, message: Duration) -> float:
    """Return the seconds of a Duration; raises InvalidRequestError if it is negative."""
    found = in_seconds(message)
    if found < 0:
        raise InvalidRequestError.of(field, "is negative")
    return found


def model(view: ModelView) -> pb.Model:
    """Return the message for a model."""
    return pb.Model(
        name=resource_name(MODELS, view.name),
        state=pb.Model.State.Value(f"STATE_{view.state}"),
        state_message=view.message,
        state_time=timestamp(view.state_time),
        backend=view.backend,
        model_file=view.model_file,
        config_file=view.config_file,
        usecases=view.usecases,
        pinned=view.pinned,
        instances=[instance(view.instance)] if view.instance else [],
        config_error=view.config_error,
        retry_time=timestamp(view.retry_time),
        etag=view.etag,
        queued_calls=view.queued_calls,
        max_concurrent_calls=view.calls_at_once,
        concurrency_groups=view.groups,
        memory=reservations(dict(view.memory), view.memory_basis),
        failures=[
            pb.CandidateFailure(
                backend=failure.backend,
                message=failure.message,
                reason=failure.reason,
                count=failure.count,
                retry_time=timestamp(failure.retry_time),
            )
            for failure in view.failures
        ],
        crash_count=view.crashes,
        last_unload=_unload(view.last_unload) if view.last_unload else None,
        endpoints=view.endpoints,
        endpoint_error=view.endpoint_error,
    )


def reservations(memory: Mapping[str, int], basis: Basis) -> list[pb.MemoryReservation]:
    """Return the messages for bytes by device."""
    value = pb.MemoryReservation.Basis.Value(f"BASIS_{basis.name}")
    return [
        pb.MemoryReservation(device=device, bytes=size, basis=value)
        for device, size in sorted(memory.items())
    ]


def _unload(unload: LastUnload) -> pb.Unload:
    reason = unload.reason
    return pb.Unload(
        cause=pb.Unload.Cause.Value(f"CAUSE_{reason.cause.name}"),
        message=reason.text,
        time=timestamp(unload.time),
        for_model=resource_name(MODELS, reason.for_model) if reason.for_model else "",
        forced=unload.forced,
    )


def instance(view: InstanceView) -> pb.Instance:
    """Return the message for an instance."""
    return pb.Instance(
        uid=view.uid,
        generation=view.generation,
        backend=view.backend,
        address=view.address,
        pid=view.pid,
        start_time=timestamp(view.started),
        ready_time=timestamp(view.ready),
        load_duration=duration(max(view.ready - view.started, 0.0) if view.ready else None),
        active_calls=view.active,
        total_calls=view.total,
        last_used_time=timestamp(view.last_used),
        load_message=view.load_message,
        adopted=view.adopted,
        direct_leases=view.direct,
    )


def resolution(found: Resolution) -> pb.ResolveModelResponse:
    """Return the message for an address under a lease."""
    return pb.ResolveModelResponse(
        address=found.address,
        token=found.token,
        lease=found.lease,
        expire_time=timestamp(found.expires),
        instance=instance(found.instance),
        advice=pb.Advice.Value(f"ADVICE_{found.advice.name}"),
        advice_message=found.why,
    )


def backend(item: Backend) -> pb.Backend:
    """Return the message for an installed backend."""
    return pb.Backend(
        name=resource_name(BACKENDS, item.name),
        aliases=item.aliases,
        run_file=str(item.run_file or "") if not item.chosen else "",
        address=item.address,
        version=item.version,
        system=item.system,
        error=item.unusable,
        source=_SOURCES[item.source],
        requires=item.requires,
        formats=item.formats,
        usecases=item.usecases,
        gallery_url=item.gallery_url,
        install_time=timestamp(item.installed),
        chosen=resource_name(BACKENDS, item.chosen) if item.chosen else "",
        explanation=item.explanation,
        max_concurrent_calls=item.concurrency,
        revision=item.revision,
    )


def log_line(line: LogLine) -> pb.LogLine:
    """Return the message for a line."""
    return pb.LogLine(
        sequence=line.sequence,
        time=timestamp(line.time),
        stream=_STREAMS[line.stream],
        text=line.text,
        generation=line.generation,
        level=pb.LogLine.Level.ValueType(line.level),
    )


def log_news(news: LogNews) -> pb.StreamLogsResponse:
    """Return the message for a line, or for lines that were missed."""
    return pb.StreamLogsResponse(
        line=log_line(news.line) if news.line else None, missed_lines=news.missed
    )


def log_query(message: pb.StreamLogsRequest) -> LogQuery:
    """Return the query for log lines; raises InvalidRequestError if it is invalid."""
    for number in message.streams:
        if number not in _STREAM_NUMBERS:
            raise InvalidRequestError.of("streams", f"{number} is not a stream of a log")
    if message.minimum_level not in pb.LogLine.Level.values():
        raise InvalidRequestError.of(
            "minimum_level", f"{message.minimum_level} is not a level of a line"
        )
    return LogQuery(
        after=not_negative("after_sequence", message.after_sequence),
        tail=not_negative("tail_lines", message.tail_lines),
        follow=message.follow,
        streams=frozenset(_STREAM_NUMBERS[number] for number in message.streams),
        minimum=Level(message.minimum_level),
    )


def model_filter(message: pb.ModelFilter) -> ModelFilter:
    """Return the filter; raises InvalidRequestError for a state that does not exist."""
    states = set()
    for number in message.states:
        if number not in pb.Model.State.values() or not number:
            raise InvalidRequestError.of("filter.states", f"{number} is not a state of a model")
        states.add(pb.Model.State.Name(number).removeprefix("STATE_"))
    return ModelFilter(frozenset(states), message.backend, message.usecase, message.name_contains)


def not_negative(field: str, value: int) -> int:
    """Return the number; raises InvalidRequestError that names the field if it is negative."""
    if value < 0:
        raise InvalidRequestError.of(field, f"{value} is negative; give 0 for no limit")
    return value
