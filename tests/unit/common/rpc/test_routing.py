from services.common.rpc.routing import MODEL_KEY, MODEL_KEY_BINARY, model_metadata


def test_a_name_in_ascii_is_text_and_any_other_is_binary() -> None:
    assert model_metadata("llama-3") == {MODEL_KEY: "llama-3"}
    assert model_metadata("größe") == {MODEL_KEY_BINARY: "größe".encode()}
    assert model_metadata("a\nb") == {MODEL_KEY_BINARY: b"a\nb"}
