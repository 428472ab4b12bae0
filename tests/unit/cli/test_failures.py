import pytest

from services.cli.failures import explain
from services.common import errors
from services.common.errors import Resource
from services.common.rpc.status import CODES


def test_hints_name_the_model() -> None:
    error = errors.ModelBusyError("it answers", resource=Resource("model", "models/m"))
    assert explain(error).hint.endswith("`corral unload m --force`")
    assert "`corral logs other`" in explain(errors.ModelLoadError("no"), model="other").hint


def test_a_wait_is_told() -> None:
    assert explain(errors.LoadBackoffError("failed", retry_after=7.4)).hint.endswith("in 7 s")


def test_what_a_later_service_sends_finds_its_hint() -> None:
    error = errors.UnknownRemoteError("no", metadata={"remote_reason": "NO_ROOM"})
    failure = explain(error, model="m")
    assert failure.reason == "NO_ROOM"
    assert "`corral plan m`" in failure.hint


def test_wrong_requests_are_wrong_usage() -> None:
    assert explain(errors.InvalidRequestError.of("tag", "is bad")).exit_code == 2
    assert explain(errors.ModelLoadError("x")).exit_code == 1


def test_braces_in_a_message_do_no_harm() -> None:
    assert explain(errors.ModelLoadError("{0} {model}")).message == "{0} {model}"


@pytest.mark.parametrize("kind", list(CODES))
def test_every_error_can_be_told(kind: type[errors.CorralError]) -> None:
    failure = explain(kind("what"))
    assert failure.message == "what"
    assert failure.reason == kind.reason
    assert "{" not in failure.hint
