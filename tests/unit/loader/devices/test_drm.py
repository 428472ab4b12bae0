"""AMD and Intel GPUs, from files as their drivers write them."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from services.loader.devices.drm import Client, parse_fdinfo, read_cards, read_clients, sum_clients
from tests.tools.kernel_files import amd_files, graphics_card, open_file

GIB = 1 << 30
AMDGPU = """pos:\t0
flags:\t02100002
drm-driver:\tamdgpu
drm-client-id:\t41
drm-pdev:\t0000:03:00.0
pasid:\t32770
drm-memory-vram:\t2048 KiB
drm-memory-gtt: \t16 KiB
drm-memory-cpu: \t4 KiB
"""
AMDGPU_NOW = AMDGPU + "drm-total-vram:\t9 MiB\ndrm-shared-vram:\t0\ndrm-resident-vram:\t3 MiB\n"
XE = """drm-driver:\txe
drm-client-id:\t3
drm-pdev:\t0000:04:00.0
drm-total-system:\t900 MiB
drm-total-vram0:\t23992 KiB
drm-shared-vram0:\t16 MiB
drm-resident-vram0:\t23990 KiB
drm-resident-vram1:\t10 KiB
drm-total-stolen:\t0
"""
I915 = "drm-driver: i915\ndrm-pdev: 0000:05:00.0\ndrm-client-id: 7\ndrm-total-local0: 1 GiB\n"


def test_no_cards(tmp_path: Path) -> None:
    assert read_cards(tmp_path / "drm") == ()


def test_amd(tmp_path: Path) -> None:
    graphics_card(tmp_path, 3, amd_files(24 * GIB, 4 * GIB))
    (found,) = read_cards(tmp_path / "drm")
    assert (found.vendor, found.address) == ("amd", "0000:03:00.0")
    assert (found.total, found.available) == (24 * GIB, 20 * GIB)
    assert found.description == "AMD GPU 0x744c"


def test_a_product_that_has_a_name(tmp_path: Path) -> None:
    graphics_card(tmp_path, 0, amd_files(1, 0) | {"device/product_name": "Instinct MI300X"})
    assert read_cards(tmp_path / "drm")[0].description == "AMD GPU Instinct MI300X"


def test_intel(tmp_path: Path) -> None:
    intel = {"device/vendor": "0x8086", "device/device": "0x56a0"}
    graphics_card(tmp_path, 0, intel)  # shares the main memory
    graphics_card(tmp_path, 1, intel | {"lmem_total_bytes": 16 * GIB, "lmem_avail_bytes": 10 * GIB})
    graphics_card(tmp_path, 2, intel | {"lmem_total_bytes": 8 * GIB})
    found = read_cards(tmp_path / "drm")
    assert [(each.vendor, each.total, each.available) for each in found] == [
        ("intel", 16 * GIB, 10 * GIB),
        ("intel", 8 * GIB, 8 * GIB),
    ]


def test_what_is_no_card_of_theirs(tmp_path: Path) -> None:
    graphics_card(tmp_path, 0, {"device/vendor": "0x10de"})
    graphics_card(tmp_path, 1, {"device/vendor": "0x1002", "device/mem_info_vram_total": "much"})
    graphics_card(tmp_path, 2, {})
    (tmp_path / "drm" / "card0-HDMI-A-1").mkdir()
    (tmp_path / "drm" / "renderD128").mkdir()
    (tmp_path / "drm" / "version").touch()
    assert read_cards(tmp_path / "drm") == ()


def test_cards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9):
        graphics_card(tmp_path, number, amd_files(number, 0))
    assert [each.total for each in read_cards(tmp_path / "drm")] == [9, 10]


def test_more_used_than_there_is(tmp_path: Path) -> None:
    graphics_card(tmp_path, 0, amd_files(5, 7))
    assert read_cards(tmp_path / "drm")[0].available == 0


def test_clients() -> None:
    assert parse_fdinfo(AMDGPU) == Client("0000:03:00.0", "41", 2 << 20)
    assert parse_fdinfo(AMDGPU_NOW) == Client("0000:03:00.0", "41", 3 << 20)
    assert parse_fdinfo(XE) == Client("0000:04:00.0", "3", 24000 << 10)
    assert parse_fdinfo(I915) == Client("0000:05:00.0", "7", GIB)
    assert parse_fdinfo("pos:\t0\nflags:\t02\n") is None


def test_files_that_share_a_client_count_once() -> None:
    clients = [Client("a", "1", 5), Client("a", "1", 5), Client("a", "2", 3), Client("b", "1", 2)]
    assert sum_clients(clients) == {"a": 8, "b": 2}


def test_clients_of_processes(tmp_path: Path) -> None:
    open_file(tmp_path, 7, 0, "/dev/null", AMDGPU)
    open_file(tmp_path, 7, 5, "/dev/dri/renderD128", AMDGPU)
    open_file(tmp_path, 8, 5, "/dev/dri/renderD128", AMDGPU)
    open_file(tmp_path, 8, 6, "/dev/dri/card1", XE)
    open_file(
        tmp_path, 9, 6, "/dev/dri/card1", XE.replace("drm-client-id:\t3", "drm-client-id:\t4")
    )
    found = sum_clients(read_clients(tmp_path, [7, 8, 10]))
    assert found == {"0000:03:00.0": 2 << 20, "0000:04:00.0": 24000 << 10}


@given(
    st.lists(
        st.sampled_from(
            ["drm-pdev", "drm-client-id", "drm-total-vram0", "drm-memory-vram", "x"]
        ).flatmap(
            lambda key: st.text("0123456789 KMGiB:-\u0663", max_size=12).map(f"{key}:".__add__)
        )
    ).map("\n".join)
    | st.text(max_size=50)
)
def test_no_text_makes_it_fail(text: str) -> None:
    client = parse_fdinfo(text)
    assert client is None or client.size >= 0
