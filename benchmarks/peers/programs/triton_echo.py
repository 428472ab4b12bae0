# mypy: ignore-errors
"""Triton's model for its own Python backend; it runs in Triton's environment."""

import triton_python_backend_utils as triton


class TritonPythonModel:
    """Echoes its input."""

    def execute(self, requests):
        """Return each request's tensor."""
        return [
            triton.InferenceResponse(
                [triton.Tensor("out", triton.get_input_tensor_by_name(request, "in").as_numpy())]
            )
            for request in requests
        ]
