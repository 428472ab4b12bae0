import pytest

from services.common.loose_files import is_loose_model


@pytest.mark.parametrize("name", ["m.gguf", "M.GGML", "weights.bin", "whisper", "my.bak2"])
def test_models(name: str) -> None:
    assert is_loose_model(name) is (".bak" not in name)


@pytest.mark.parametrize(
    "name",
    ["a.yaml", "a.YML", "README.md", "readme", "MODEL_CARD", ".hidden", "a.bak", "a.bak.gguf"]
    + ["a.gguf.partial", "a.crdownload", "a.gguf~", "a.safetensors", "a."],
)
def test_other_files(name: str) -> None:
    assert not is_loose_model(name)
