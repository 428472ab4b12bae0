"""Talk to a model at the speed of its backend: one line, and nothing to look after.

    from corral.backend.backend_pb2 import PredictOptions
    from corral.client import connect

    with connect("my-model") as backend:
        print(backend.Predict(PredictOptions(Prompt="Once upon a time")).message.decode())

What `connect` returns has every method of `backend.Backend`, as the generated stub has them. Calls go straight
to the process that holds the model, under a lease of the loader's (HoldModel), and through the loader when
there is no such way: while the model is loaded, moves or comes back from a crash, when the client is on another
machine or of another user, or when the loader gives out no leases. `corral.client.aio` is the same for asyncio.

A call is never made twice unless it has certainly not begun: only a blocking unary call that found no server
listening goes on to the loader. What the backend of a running call does is the caller's to see.
"""

from __future__ import annotations

from . import aio
from .blocking import Model, connect

__all__ = ["Model", "aio", "connect"]
