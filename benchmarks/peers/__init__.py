"""Other model servers with the same trivial echo, to compare with Corral.

    for name, peer in PEERS.items():
        async with peer.start(payload_size=1024) as running:
            ...  # running.target, .method, .request, .metadata, .pids(), .ready_seconds

`python -m benchmarks.peers [NAME ...]` starts each once and shows that it echoes. Each is installed on
first use into its own environment (`requirements/<name>.txt`) below `$XDG_CACHE_HOME/corral-bench`.
"""

from .environment import UnavailableError
from .known import PEERS
from .peer import Peer, Running

__all__ = ["PEERS", "Peer", "Running", "UnavailableError"]
