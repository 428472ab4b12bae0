"""Invariants 4 and 5 at model endpoints, where no call has an object of its own."""

from __future__ import annotations

from .change import ENDPOINTS, LOADER, Break

BREAKS = (
    Break(
        4,
        "the open calls of a connection do not hold their instance",
        f"{LOADER}/admission/connection_lease.py",
        "        calls.hold(count)\n",
        "",
        f"{ENDPOINTS}::test_an_open_stream_holds_its_model",
    ),
    Break(
        4,
        "an unload does not ask clients to reconnect",
        f"{LOADER}/endpoints/http2.py",
        '    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + why)\n',
        '    return b""\n',
        f"{ENDPOINTS}::test_no_call_is_lost_by_unloads",
    ),
    Break(
        5,
        "a connection to an endpoint loads the model",
        f"{LOADER}/endpoints/endpoint.py",
        "            self.connections.add(Connection(sock, self))\n",
        "            self.connections.add(Connection(sock, self))\n"
        "            self._loader.begin_load(self.name)\n",
        f"{ENDPOINTS}::test_an_idle_client_wakes_nothing",
    ),
    Break(
        5,
        "a Health call at an endpoint loads the model",
        f"{LOADER}/endpoints/request_headers.py",
        '    b"Health": Kind.PROBE,\n',
        "",
        f"{ENDPOINTS}::test_probes_load_nothing_and_control_changes_nothing",
    ),
)
