import pytest

from services.common.errors import InvalidRequestError
from services.common.names import MODELS, resource_id, resource_name


@pytest.mark.parametrize("name", ["models/a/b", "a/b", " models/a/b "])
def test_an_id_is_read_from_a_name_or_given_bare(name: str) -> None:
    assert resource_name(MODELS, resource_id(MODELS, name.strip())) == "models/a/b"


@pytest.mark.parametrize("name", ["", "models/", "models/ "])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resource_id(MODELS, name, "model")
    assert caught.value.violations[0].field == "model"
