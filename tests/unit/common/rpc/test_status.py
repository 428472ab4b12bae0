"""The error classes, and their conversion to a google.rpc.Status and back."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import errors
from services.common.errors import CorralError, FieldViolation, InvalidRequestError, Resource
from services.common.rpc import status


def all_errors(base: type[CorralError] = CorralError) -> list[type[CorralError]]:
    # Other packages may add error classes in the same process; these are the ones of `errors`.
    found = [cls for cls in base.__subclasses__() if cls.__module__ == errors.__name__]
    return [*found, *(child for cls in found for child in all_errors(cls))]


def facts(error: CorralError) -> tuple[object, ...]:
    return (
        type(error),
        str(error),
        error.metadata,
        error.retry_after,
        error.resource,
        error.violations,
    )


def rpc_error(
    code: grpc.StatusCode, details: str = "", *trailing: tuple[str, bytes]
) -> aio.AioRpcError:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailing), details)


def test_every_error_has_a_code_and_a_reason_of_its_own() -> None:
    classes = all_errors()
    assert set(classes) == set(status.CODES)
    reasons = [cls.reason for cls in classes]
    assert len(set(reasons)) == len(reasons)
    assert all(reason == reason.upper().replace(" ", "_") for reason in reasons)
    assert grpc.StatusCode.OK not in status.CODES.values()


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.reason)
def test_every_error_survives_the_wire(cls: type[CorralError]) -> None:
    sent = cls(
        "what is wrong: é, \n and %",
        metadata={"model": "phi-3", "attempt": "2"},
        retry_after=1.25,
        resource=Resource("model", "phi-3", "the small one"),
        violations=[FieldViolation("model.name", "is empty"), FieldViolation("size", "is odd")],
    )
    wire = status.to_status(sent)
    assert wire.code == status.CODES[cls].value[0]
    trailing = status.trailing_metadata(wire)
    got = status.from_rpc_error(rpc_error(status.status_code(sent), wire.message, *trailing))
    assert facts(got) == facts(sent)


def test_a_status_carries_the_standard_details() -> None:
    wire = status.to_status(InvalidRequestError.of("model", "is empty"))
    assert wire.message == "model: is empty"
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert wire.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("corral", "INVALID_REQUEST")
    assert wire.details[1].Unpack(bad)
    assert [(v.field, v.description) for v in bad.field_violations] == [("model", "is empty")]


def test_the_text_of_a_foreign_exception_stays_here() -> None:
    wire = status.to_status(KeyError("/etc/secret"))
    assert wire.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(wire)
    assert "request id" in wire.message


def test_a_subclass_has_its_parents_code() -> None:
    class NarrowError(errors.ModelNotFoundError):
        pass

    try:
        assert status.status_code(NarrowError("x")) is grpc.StatusCode.NOT_FOUND
    finally:
        del NarrowError


def test_a_remote_error_keeps_its_code_over_two_hops() -> None:
    first = status.from_rpc_error(rpc_error(grpc.StatusCode.OUT_OF_RANGE, "past the end"))
    assert isinstance(first, errors.UnknownRemoteError)
    assert first.code == "OUT_OF_RANGE"
    assert status.status_code(first) is grpc.StatusCode.OUT_OF_RANGE
    second = status.from_status(status.to_status(first))
    assert isinstance(second, errors.UnknownRemoteError)
    assert (second.code, str(second)) == ("OUT_OF_RANGE", "past the end")


def test_a_foreign_reason_is_kept_as_text() -> None:
    wire = status_pb2.Status(code=9, message="no")
    wire.details.add().Pack(
        error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain="example.com")
    )
    error = status.from_status(wire)
    assert isinstance(error, errors.UnknownRemoteError)
    assert (error.code, error.metadata) == (
        "FAILED_PRECONDITION",
        {"remote_reason": "MODEL_NOT_FOUND"},
    )


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.ServiceUnreachableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineError),
        (grpc.StatusCode.CANCELLED, errors.UnknownRemoteError),
    ],
)
def test_errors_without_details(code: grpc.StatusCode, cls: type[CorralError]) -> None:
    assert type(status.from_rpc_error(rpc_error(code))) is cls
    assert str(status.from_rpc_error(rpc_error(code, "said so"))) == "said so"


def test_garbage_for_details_is_no_trouble() -> None:
    for junk in (b"\xff\xff\xff", b""):
        error = rpc_error(grpc.StatusCode.NOT_FOUND, "gone", (status.DETAILS_KEY, junk))
        assert isinstance(status.from_rpc_error(error), errors.UnknownRemoteError)
    wire = status_pb2.Status(code=999, message="odd")
    wire.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    got = status.from_status(wire)
    assert isinstance(got, errors.UnknownRemoteError)
    assert got.code == "UNKNOWN"


@settings(deadline=None)
@given(
    st.text(max_size=4000),
    st.dictionaries(st.text("abc_", min_size=1), st.text(max_size=3000), max_size=5),
)
def test_any_error_fits_into_the_trailers(message: str, metadata: dict[str, str]) -> None:
    wire = status.to_status(errors.ModelLoadError(message, metadata=metadata))
    # As sent: the message percent-encoded, and the status as base64.
    encoded = sum(1 if 0x20 <= b < 0x7F and b != 0x25 else 3 for b in wire.message.encode())
    assert encoded + wire.ByteSize() * 4 / 3 < 8192 - 512
    back = status.from_status(wire)
    assert type(back) is errors.ModelLoadError or not back.metadata


@given(st.text(st.characters(codec="utf-8"), max_size=300), st.integers(8, 200))
def test_shorten_cuts_only_what_is_too_long(text: str, limit: int) -> None:
    short = status.shorten(text, limit)
    assert len(short.encode()) <= limit
    if len(text.encode()) <= limit:
        assert short == text
    else:
        assert short.endswith("…")
        assert text.startswith(short[:-1])


def test_a_file_name_that_is_no_text_can_be_reported() -> None:
    assert status.to_status(errors.ConflictError("bad \udcff name")).message == "bad ? name"
