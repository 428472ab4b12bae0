"""What a model is expected to need: pure arithmetic over header, options and devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.memory.estimate import (
    MARGIN_BYTES,
    Usage,
    estimate,
    kv_bytes,
)
from services.loader.memory.reservation import Basis, Reservation
from services.loader.models.config import ModelConfig
from services.loader.models.gguf import Header

GIB = 1024**3
# The figures of Llama 3.1 8B in Q4_K_M.
LLAMA = Header(
    4_920_000_000,
    {
        "general.architecture": "llama",
        "llama.context_length": 131072,
        "llama.block_count": 32,
        "llama.embedding_length": 4096,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    },
)


def need(
    gpus: dict[str, int] | None = None,
    *,
    config: dict[str, Any] | None = None,
    context: int = 8192,
    layers: int = 99_999_999,
    **usage: Any,
) -> Reservation:
    settings = {"name": "m", "parameters": {"model": "m.gguf"}, **(config or {})}
    return estimate(
        ModelConfig.model_validate(settings),
        Path("/nowhere"),
        LLAMA,
        Usage(context, layers, **usage),
        gpus or {},
    )


def test_keys_and_values_are_those_of_the_model_card() -> None:
    # 32 layers x 8 heads x 128 numbers x 2 bytes, twice: 128 KiB a token, 1 GiB for 8192.
    assert kv_bytes(LLAMA, Usage(8192, 0)) == GIB
    assert kv_bytes(LLAMA, Usage(8192, 0, "q8_0", "q8_0")) == GIB * 34 // 64
    assert kv_bytes(LLAMA, Usage(8192, 0, "f32", "f16")) == GIB * 3 // 2


def test_latent_attention_keeps_one_vector_a_layer() -> None:
    metadata = {
        "general.architecture": "deepseek2",
        "deepseek2.block_count": 61,
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.rope.dimension_count": 64,
        "deepseek2.attention.head_count": 128,
    }
    assert kv_bytes(Header(1, metadata), Usage(1000, 0)) == 61 * 576 * 2 * 1000


def test_without_a_gpu_all_is_in_main_memory() -> None:
    assert need().memory == {"ram": LLAMA.size + GIB + round(LLAMA.size * 0.04) + MARGIN_BYTES}
    assert need({}, layers=0) == need()


def test_layers_move_the_need_to_the_gpu() -> None:
    one = {"gpu0": 24 * GIB}
    assert need(one).memory["ram"] == MARGIN_BYTES
    half = need(one, layers=16).memory
    assert 0 < half["gpu0"] < need(one).memory["gpu0"] and half["ram"] > MARGIN_BYTES
    assert need(one, layers=0) == need()
    assert need(one, no_kv_offload=True).memory["ram"] == GIB + MARGIN_BYTES


def test_gpus_share_by_the_split_else_by_size() -> None:
    two = {"gpu0": 8 * GIB, "gpu1": 24 * GIB}
    by_size = need(two).memory
    assert by_size["gpu1"] == pytest.approx(3 * by_size["gpu0"], abs=4)
    assert "gpu0" not in need(two, tensor_split="0,1").memory
    assert need(two, tensor_split="nonsense") == need(two)


@pytest.mark.parametrize(
    ("memory", "gpus", "devices"),
    [
        (2 * GIB, {}, {"ram": 2 * GIB}),
        ("4GiB", {}, {"ram": 4 * GIB}),
        ("4GiB", {"gpu0": GIB}, {"gpu0": 4 * GIB}),
        ({"ram": "2GiB", "gpu0": "6GiB"}, {"gpu0": GIB}, {"ram": 2 * GIB, "gpu0": 6 * GIB}),
    ],
)
def test_what_the_configuration_says_wins(
    memory: Any, gpus: dict[str, int], devices: dict[str, int]
) -> None:
    said = need(gpus, config={"memory": memory})
    assert said.memory == devices and said.basis is Basis.CONFIGURED


def test_other_files_need_their_size(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(bytes(1000))
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "weights").write_bytes(bytes(3000))

    def ram(model: str, **more: Any) -> int:
        config = ModelConfig.model_validate({"parameters": {"model": model}, **more})
        return estimate(config, tmp_path, None, Usage(4096, 0), {}).memory.get("ram", 0)

    assert ram("m.bin") == 1040 + MARGIN_BYTES
    assert ram("folder") == 3120 + MARGIN_BYTES
    assert ram("m.bin", mmproj="folder", draft_model="m.bin") == 4040 + MARGIN_BYTES
    assert ram("owner/repository") == 0


@given(
    st.dictionaries(st.sampled_from(["gpu0", "gpu1", "gpu2"]), st.integers(0, 2**40)),
    st.integers(0, 2**20),
    st.integers(-1, 100),
    st.booleans(),
    st.sampled_from(["", "1,2", "0,0", "1/1/1/1", "nan"]),
)
def test_no_byte_is_lost_between_devices(
    gpus: dict[str, int], context: int, layers: int, no_kv: bool, split: str
) -> None:
    got = need(gpus, context=context, layers=layers, no_kv_offload=no_kv, tensor_split=split)
    alone = need(context=context)
    extra = MARGIN_BYTES if set(got.memory) != {"ram"} else 0
    assert abs(sum(got.memory.values()) - sum(alone.memory.values()) - extra) <= 8
    assert all(size > 0 for size in got.memory.values())
    assert set(got.memory) <= {"ram", *gpus}
