from pathlib import Path

import pytest

from services.cli.failures import Failure
from services.cli.stack import arguments
from services.cli.stack.arguments import Options, for_service, listen_of

KNOWN = {"metrics": "127.0.0.1:4", "loader": "127.0.0.1:1"}


def test_what_is_not_said_is_left_to_the_service() -> None:
    assert for_service("metrics", Options(), {}, {}) == []
    assert for_service("loader", Options(), {"metrics": "127.0.0.1:4"}, {}) == [
        "--metrics=127.0.0.1:4"
    ]
    assert for_service("monitor", Options(), KNOWN, {}) == [
        "--metrics=127.0.0.1:4",
        "--loader=127.0.0.1:1",
    ]


def test_each_service_gets_the_flags_it_has() -> None:
    options = Options(
        models_path="/m",
        backends_path=("/b1", "/b2"),
        external_backend=("x=/run.sh", "y=127.0.0.1:9"),
        state_path="/s",
        log_level="debug",
        log_format="json",
        config="/c.yaml",
    )
    shared = ["--state-path=/s", "--log-level=debug", "--log-format=json", "--config=/c.yaml"]
    assert for_service("metrics", options, {}, {}) == shared
    assert for_service("monitor", options, KNOWN, {})[:4] == shared
    loader = for_service("loader", options, KNOWN, {})
    assert loader[5:] == [
        "--models-path=/m",
        "--backends-path=/b1",
        "--backends-path=/b2",
        "--external-backend=x=/run.sh",
        "--external-backend=y=127.0.0.1:9",
    ]
    assert for_service("gallery", options, KNOWN, {})[6:] == [
        "--models-path=/m",
        "--backends-path=/b1",
    ]


def test_a_restart_takes_the_same_addresses() -> None:
    options = Options(listen="127.0.0.1:0")
    bound = {"metrics": "127.0.0.1:4711", "http": "127.0.0.1:4712"}
    assert for_service("metrics", options, {}, bound) == [
        "--listen=127.0.0.1:4711",
        "--http-listen=127.0.0.1:4712",
    ]


@pytest.mark.parametrize(
    ("listen", "name", "expected"),
    [
        (None, "loader", None),
        ("127.0.0.1:0", "gallery", "127.0.0.1:0"),
        ("127.0.0.1:0", "http", "127.0.0.1:0"),
        ("0.0.0.0:6000", "loader", "0.0.0.0:6000"),
        ("0.0.0.0:6000", "metrics", "0.0.0.0:6003"),
        ("[::1]:6000", "http", "[::1]:6004"),
        ("unix:/run/corral", "monitor", "unix:/run/corral/monitor.sock"),
        ("unix:/run/corral", "http", None),
    ],
)
def test_one_base_makes_all_addresses(listen: str | None, name: str, expected: str | None) -> None:
    assert listen_of(Options(listen=listen), name) == expected


def test_an_address_of_its_own_wins() -> None:
    options = Options(listen="127.0.0.1:6000", listens={"loader": "127.0.0.1:7000"})
    assert listen_of(options, "loader") == "127.0.0.1:7000"
    assert listen_of(options, "gallery") == "127.0.0.1:6001"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Options(listen="6000"), "--listen: '6000' has no port"),
        (
            Options(listen="127.0.0.1:65533"),
            "--listen: there are fewer than five ports from 65533 on",
        ),
        (Options(listens={"gallery": "x:y"}), "--gallery-listen: .* must be a number"),
        (
            Options(listens={"http": "unix:/x"}),
            "--metrics-http-listen: Prometheus connects over TCP",
        ),
        (Options(listen=f"unix:/{'x' * 120}"), "--listen: the socket's path has"),
    ],
)
def test_bad_addresses_are_refused_before_anything_starts(options: Options, text: str) -> None:
    with pytest.raises(Failure, match=text) as caught:
        arguments.check(options)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "127.0.0.1:1"),
        ("[::1]:1", "[::1]:1"),
        ("unix:/x", "unix:/x"),
    ],
)
def test_all_interfaces_are_no_address_to_call(address: str, expected: str) -> None:
    assert arguments.reachable(address) == expected


def test_the_metrics_state_is_found_by_its_own_rules(tmp_path: Path) -> None:
    file = tmp_path / "corral.yaml"
    file.write_text("state_path: /everyone\nmetrics:\n  state_path: /mine\n  max_series: 5\n")
    home = arguments.metrics_state_path(Options(), {})
    assert home.name == "state"
    assert arguments.metrics_state_path(Options(config=str(file)), {}) == Path("/mine")
    env = {"CORRAL_METRICS_STATE_PATH": "/env"}
    assert arguments.metrics_state_path(Options(config=str(file)), env) == Path("/env")
    assert arguments.metrics_state_path(Options(config=str(file), state_path="/flag"), env) == Path(
        "/flag"
    )
