import pytest

from services.common.rpc.interceptors import REQUEST_ID_KEY, request_id


@pytest.mark.parametrize("sent", ["a", "x" * 128, "with blank"])
def test_a_valid_request_id_is_kept(sent: str) -> None:
    assert request_id((("other", "1"), (REQUEST_ID_KEY, sent))) == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a\nb", "é", b"bytes"])
def test_any_other_is_replaced(sent: str | bytes) -> None:
    made = request_id(((REQUEST_ID_KEY, sent),))
    assert made != sent
    assert len(made) == 32
    assert made != request_id(None)
