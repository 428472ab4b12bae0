# mypy: ignore-errors
"""BentoML's service; it runs in BentoML's environment. Only its legacy services speak gRPC."""

import bentoml.legacy
from bentoml.io import Text

service = bentoml.legacy.Service("echo")


@service.api(input=Text(), output=Text())
def echo(text: str) -> str:
    """Return the text unchanged."""
    return text
