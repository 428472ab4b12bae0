# mypy: ignore-errors
"""Ray Serve with backend.Backend: `GRPC_PORT HTTP_PORT FOLDER`. It runs in Ray's environment."""

import signal
import sys

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from corral.backend import backend_pb2


@serve.deployment(logging_config={"enable_access_log": False, "log_level": "WARNING"})
class Echo:
    """Echoes its input."""

    async def Predict(self, request):
        """Return the prompt."""
        return backend_pb2.Reply(message=request.Prompt.encode())


grpc_port, http_port = map(int, sys.argv[1:3])
ray.init(_node_ip_address="127.0.0.1", _temp_dir=sys.argv[3], include_dashboard=False)
serve.start(
    grpc_options=gRPCOptions(
        port=grpc_port,
        grpc_servicer_functions=["corral.backend.backend_pb2_grpc.add_BackendServicer_to_server"],
    ),
    http_options=HTTPOptions(host="127.0.0.1", port=http_port),
    logging_config={"enable_access_log": False, "log_level": "WARNING"},
)
serve.run(Echo.bind())
signal.sigwait({signal.SIGTERM, signal.SIGINT})
