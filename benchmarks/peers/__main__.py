"""Start each peer once and show that it echoes: `python -m benchmarks.peers [NAME ...]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from . import PEERS, Peer, UnavailableError

CALLS = 200


async def _try(name: str, peer: Peer) -> bool:
    try:
        async with peer.start() as running:
            times = []
            for _ in range(CALLS):
                began = time.perf_counter()
                await running.call()
                times.append(time.perf_counter() - began)
            print(
                f"{name:18}{peer.title:28} ready in {running.ready_seconds:5.1f} s,"
                f" {len(running.pids()):2} processes,"
                f" {sorted(times)[CALLS // 2] * 1e3:5.1f} ms a call on a new connection"
                f"  ({peer.settings})",
                flush=True,
            )
    except UnavailableError as error:
        print(f"{name:18}{peer.title:28} cannot be measured: {error}", flush=True)
        return False
    return True


async def _main(names: list[str]) -> int:
    return sum([not await _try(name, PEERS[name]) for name in names])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PEERS))
    given = parser.parse_args()
    if unknown := set(given.names) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    sys.exit(asyncio.run(_main(given.names or list(PEERS))))
