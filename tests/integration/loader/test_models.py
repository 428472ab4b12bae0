"""The models folder, as clients of a real loader see it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from services.common.rpc.status import from_rpc_error
from tests.tools.loader_calls import MODEL, load, prompt
from tests.tools.running import LoaderUnderTest, eventually
from tests.tools.tiny_gguf import write_tiny

Option = pb.EffectiveOption
REQUEST = "request.bin"


async def listed(loader: LoaderUnderTest) -> dict[str, pb.Model]:
    answer = await loader.control.ListModels(pb.ListModelsRequest())
    return {model.name.removeprefix("models/"): model for model in answer.models}


async def model(loader: LoaderUnderTest, name: str = "m") -> Any:
    return (await loader.control.GetModel(pb.GetModelRequest(name=name))).model


async def told(loader: LoaderUnderTest, name: str = "m") -> dict[str, Any]:
    """Return what GetModel reports as sent to the backend, by field."""
    answer = await loader.control.GetModel(pb.GetModelRequest(name=name))
    return {option.field: option for option in answer.effective_options}


def received(loader: LoaderUnderTest, backend: str) -> backend_pb2.ModelOptions:
    content = (loader.backends / backend / REQUEST).read_bytes()
    return backend_pb2.ModelOptions.FromString(content)


def as_message(options: Mapping[str, Any]) -> backend_pb2.ModelOptions:
    fields = {field: json.loads(option.value) for field, option in options.items()}
    return json_format.ParseDict(fields, backend_pb2.ModelOptions())


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return from_rpc_error(failed.value)


async def test_a_broken_file_is_told_with_line_and_field_beside_good_ones(
    running: LoaderUnderTest,
) -> None:
    (running.models / "wrong.yaml").write_text("name: wrong\nbackend: fake\ncontext_size: many\n")
    (running.models / "tab.yaml").write_text("name: tab\n\tbackend: fake\n")
    (running.models / "list.yaml").write_text(
        "- name: first\n  backend: fake\n- name: second\n  gpu_layers: all\n"
    )
    models = await listed(running)
    assert {name for name, m in models.items() if not m.config_error} == {"m", "first"}
    for name, place in (
        ("wrong", "wrong.yaml, line 3, context_size: 'many' is not a whole number"),
        ("tab", "tab.yaml, line 2, name: is not YAML"),
        ("second", "list.yaml[1], line 4, gpu_layers: 'all' is not a whole number"),
    ):
        assert place in models[name].config_error
        assert place in (await model(running, name)).config_error
        assert not await told(running, name)
        error = await refused(running.control.LoadModel(load(name)))
        assert error.reason == "MODEL_CONFIG_INVALID" and place in error.message
    assert error.violations[0].field == "gpu_layers"
    await running.control.LoadModel(load())
    await running.control.LoadModel(load("first"))


async def test_aliases_disabled_models_and_the_list_file(loader: LoaderUnderTest) -> None:
    loader.add_backend("fake")
    loader.add_model("m", "fake", limits={"max_concurrent": 2})
    loader.add_model("off", "fake", disabled=True)
    (loader.models / "other.yaml").write_text("name: other\nalias: m\n")
    (loader.models / "astray.yaml").write_text("name: astray\nalias: nobody\n")
    everything = loader.home / "all.yaml"
    everything.write_text("- name: listed\n  backend: fake\n- name: m\n  backend: none\n")
    await loader.start("--models-config-file", str(everything))
    await loader.data.Predict(prompt("x"), metadata=(("corral-model", "other"),))
    assert (await model(loader)).state == pb.Model.STATE_READY
    assert "'nobody', which is not a model" in (await listed(loader))["astray"].config_error
    error = await refused(loader.control.LoadModel(load("off")))
    assert error.reason == "MODEL_DISABLED"
    assert (await told(loader, "off"))["Model"].value == '"off.bin"'
    assert (await told(loader, "other"))["Model"].value == '"m.bin"'
    await loader.control.LoadModel(load("listed"))
    everything.write_text("- name: listed\n  threads: x\n")
    await eventually(lambda: _has_error(loader, "listed"), what="the new list")


async def _has_error(loader: LoaderUnderTest, name: str) -> bool:
    return bool((await listed(loader))[name].config_error)


async def test_what_getmodel_tells_is_what_the_backend_gets(loader: LoaderUnderTest) -> None:
    loader.add_backend("llama-cpp", load_request=REQUEST)
    write_tiny("count", loader.models / "tiny.gguf", ctx=1234)
    (loader.models / "m.yaml").write_text(
        "# a model\nname: m\nbackend: llama-cpp\nparameters:\n  model: tiny.gguf\n"
        "f16: false\nmmproj: p.gguf\nlora_scales: [0.1, 2]\noptions:\n- gpu\n- cache_reuse:0\n"
        "proxy: {mode: passthrough}\ngrpc: {attempts: 20}\nengine_args: {a: [1, x]}\n"
        "function: {grammar: {triggers: [{word: '{'}]}}\n"
    )
    await loader.start("--threads", "3")
    options = await told(loader)
    await loader.control.LoadModel(load())
    sent = received(loader, "llama-cpp")
    assert as_message(options) == sent and as_message(await told(loader)) == sent
    assert sent.ContextSize == 1234 and sent.Threads == 3 and sent.Seed
    assert list(sent.Options) == ["gpu", "cache_reuse:0", "use_jinja:true"]

    def where(field: str) -> tuple[int, str]:
        return options[field].source, options[field].detail

    assert where("Model") == (Option.SOURCE_CONFIG, "parameters.model in m.yaml, line 5")
    assert where("F16Memory") == (Option.SOURCE_CONFIG, "f16 in m.yaml, line 6")
    assert where("ContextSize") == (Option.SOURCE_MODEL_FILE, "trained for 1234 tokens")
    assert where("Threads") == (Option.SOURCE_SETTINGS, "--threads")
    assert where("NBatch") == (Option.SOURCE_DEFAULT, "")
    assert where("Options")[1] == (
        "options in m.yaml, line 9; and use_jinja:true: the file has a chat template"
    )
    assert {option.source for option in options.values()} >= {
        *(Option.SOURCE_CONFIG, Option.SOURCE_DEFAULT, Option.SOURCE_SETTINGS),
        Option.SOURCE_MODEL_FILE,
    }


async def test_guessing_can_be_switched_off(loader: LoaderUnderTest) -> None:
    loader.add_backend("llama-cpp", load_request=REQUEST)
    write_tiny("count", loader.models / "tiny.gguf", ctx=1234)
    await loader.start(env={"LOCALAI_DISABLE_GUESSING": "true", "XPU": "1"})
    options = await told(loader, "tiny.gguf")
    assert options["ContextSize"].value == "4096" and "MMap" not in options
    await loader.control.LoadModel(load("tiny.gguf"))
    assert as_message(options) == received(loader, "llama-cpp")


async def test_a_change_is_applied_at_once(loader: LoaderUnderTest) -> None:
    """Without waiting for the interval, which is for folders without change notifications."""
    loader.add_backend("fake", load_request=REQUEST)
    loader.add_model("m", "fake")
    await loader.start("--models-interval", "1h")
    await loader.control.LoadModel(load())

    async def unloaded() -> bool:
        return bool((await model(loader)).state == pb.Model.STATE_UNLOADED)

    for change in (
        lambda: loader.add_model("m", "fake", context_size=77),
        lambda: (loader.models / "m.bin").write_bytes(b"weights"),
    ):
        await loader.data.Predict(prompt("x"), metadata=MODEL)
        change()
        await eventually(unloaded, timeout=5, what="the change")
    await loader.data.Predict(prompt("x"), metadata=MODEL)
    assert received(loader, "fake").ContextSize == 77


async def test_a_comment_disturbs_nobody(running: LoaderUnderTest) -> None:
    first = (await running.control.LoadModel(load())).model.instances[0].uid
    file = running.models / "m.yaml"
    file.write_text(f"# a comment\n{file.read_text()}")
    (running.models / "new.yaml").write_text("name: new\n")
    await eventually(lambda: _is_listed(running, "new"), what="the look")
    assert (await model(running)).instances[0].uid == first


async def _is_listed(loader: LoaderUnderTest, name: str) -> bool:
    return name in await listed(loader)


async def test_thousands_of_models_are_served_at_once(loader: LoaderUnderTest) -> None:
    """`python -m benchmarks models` has the figures; this only checks that nothing is far off."""
    for number in range(2000):
        (loader.models / f"m{number:04}.yaml").write_text(f"name: m{number:04}\nbackend: x\n")
    await loader.start()
    started = time.monotonic()
    page = await loader.control.ListModels(pb.ListModelsRequest(page_size=100))
    assert len(page.models) == 100 and page.total_size == 2000
    assert time.monotonic() - started < 1
    (loader.models / "zz.yaml").write_text("name: zz\nthreads: x\n")
    assert (await model(loader, "zz")).config_error
    assert (await refused(loader.control.LoadModel(load("nobody")))).reason == "MODEL_NOT_FOUND"


async def test_what_a_model_is_expected_to_need(loader: LoaderUnderTest) -> None:
    loader.add_backend("llama-cpp", load_request=REQUEST)
    loader.add_model("said", "llama-cpp", memory={"ram": "300MiB"})
    write_tiny("count", loader.models / "tiny.gguf")
    await loader.start()

    async def memory(name: str) -> Any:
        request = pb.PlanEvictionRequest(name=name)
        return (await loader.control.PlanEviction(request)).memory[0]

    said, guessed = await memory("said"), await memory("tiny.gguf")
    assert (said.device, said.bytes) == ("ram", 300 * 1024**2)
    assert said.basis == pb.MemoryReservation.BASIS_CONFIGURED
    assert guessed.basis == pb.MemoryReservation.BASIS_ESTIMATED
    assert guessed.bytes > (loader.models / "tiny.gguf").stat().st_size
