"""Checks a server's health: `python -m services.common.rpc.probe ADDRESS [SERVICE]`.

For the health checks of containers without another client. Exit code 0 if the service serves, 1 with
the reason on stderr if not.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.errors import CorralError

from .channels import call, open_channel

TIMEOUT = 3.0
"""Seconds to wait for the answer; a container's health check should allow a little more."""


async def probe(address: str, service: str = "") -> str:
    """Return the status's name, such as SERVING. Raises CorralError."""
    async with open_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await call(stub.Check, request, timeout=TIMEOUT)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main() -> int:
    """Probe the server named on the command line; return the exit code."""
    if len(sys.argv) not in (2, 3):
        sys.stderr.write("usage: python -m services.common.rpc.probe ADDRESS [SERVICE]\n")
        return 2
    try:
        status = asyncio.run(probe(*sys.argv[1:]))
    except CorralError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(f"{status}\n")
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
