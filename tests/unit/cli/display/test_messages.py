import json
from collections.abc import Mapping
from typing import Any

import pytest
from google.longrunning import operations_pb2

from corral.gallery.v1 import gallery_pb2
from corral.loader.v1 import loader_pb2
from corral.monitor.v1 import monitor_pb2
from services.cli.display import loader_messages, messages, views


def test_a_state_of_a_later_loader_is_shown_by_its_number() -> None:
    assert messages.state_of(loader_pb2.Model(state=99)) == "99"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        (messages.model(loader_pb2.Model()), views.Model),
        (
            messages.model(loader_pb2.Model(instances=[loader_pb2.Instance()]))["instance"],
            views.Instance,
        ),
        (messages.entry(gallery_pb2.ModelEntry()), views.Entry),
        (messages.installed(gallery_pb2.InstalledModel()), views.InstalledModel),
        (messages.status(monitor_pb2.ModelStatus()), views.Status),
        (messages.operation(operations_pb2.Operation()), views.Operation),
        (messages.log_line(loader_pb2.LogLine()), views.LogLine),
        (loader_messages.backend(loader_pb2.Backend()), views.Backend),
        (loader_messages.option(loader_pb2.EffectiveOption()), views.Option),
        (loader_messages.capacity(loader_pb2.GetCapacityResponse()), views.Capacity),
        (loader_messages.plan("m", loader_pb2.PlanEvictionResponse()), views.Plan),
    ],
)
def test_json_has_the_fields_of_the_view_in_its_order(
    view: Mapping[str, Any], shape: type[Any]
) -> None:
    assert list(json.loads(json.dumps(view))) == list(shape.__annotations__)


def test_names_are_bare_ids() -> None:
    assert messages.bare("models/a/b") == "a/b"
    assert messages.bare("backends/llama-cpp") == "llama-cpp"
    assert messages.origin("galleries/shop/models/count") == "shop@count"


def test_settings_of_a_loader_that_does_not_describe_them() -> None:
    settings = loader_pb2.Settings(queue_size=3)
    settings.watchdog_interval.FromMilliseconds(500)
    shown = loader_messages.settings(settings, {"queue_size": "start"}, {})
    assert list(shown) == [field.name for field in loader_pb2.Settings.DESCRIPTOR.fields]
    assert shown["queue_size"] == {"value": 3, "source": "start", "meaning": ""}
    assert shown["watchdog_interval"]["value"] == 0.5
