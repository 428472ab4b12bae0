# mypy: ignore-errors
"""MLServer's model; it runs in MLServer's environment, which does not have Corral's packages."""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Echo(MLModel):
    """Echoes its input."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the first input."""
        given = payload.inputs[0]
        output = ResponseOutput(
            name="out", shape=given.shape, datatype=given.datatype, data=given.data
        )
        return InferenceResponse(model_name=self.name, outputs=[output])
