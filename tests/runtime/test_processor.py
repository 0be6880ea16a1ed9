"""What is read of a processor, and what numpy is told about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mgsr.runtime import processor, progress

ZEN_4 = {
    "vendor_id": "AuthenticAMD",
    "cpu family": "25",
    "flags": "sse avx2 avx512f avx512vl",
    "model name": "EPYC",
}
NAME = "NPY_DISABLE_CPU_FEATURES"


@pytest.fixture
def is_(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(processor, "described", lambda: ZEN_4)
    return monkeypatch


@pytest.mark.parametrize(
    ("numpy", "feature"), [("2.4.6", "X86_V4"), ("2.10.0", "X86_V4"), ("2.3.5", "AVX512_SKX")]
)
def test_numpy_sorts_with_avx2_on_zen_4(numpy: str, feature: str, is_: pytest.MonkeyPatch) -> None:
    is_.setattr(processor, "version", lambda package: numpy)
    environ: dict[str, str] = {}
    processor.prefer_quick_sorts(environ)
    assert environ == {NAME: feature} and processor.name() == "EPYC" and processor.is_amd()
    environ = {NAME: "AVX2"}
    processor.prefer_quick_sorts(environ)
    assert environ == {NAME: "AVX2"}, "what the user has set stays"


@pytest.mark.parametrize(
    "other",
    [{"vendor_id": "GenuineIntel"}, {"cpu family": "26"}, {"flags": "sse avx2"}, {"vendor_id": "", "flags": ""}],
)
def test_other_processors_are_left_alone(other: dict[str, str], is_: pytest.MonkeyPatch) -> None:
    is_.setattr(processor, "described", lambda: {**ZEN_4, **other})
    environ: dict[str, str] = {}
    processor.prefer_quick_sorts(environ)
    assert environ == {}


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "50000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_rest_soon_unless_the_user_says_otherwise(given: dict[str, str], found: str | None) -> None:
    environ = dict(given)
    processor.rest_soon(environ)
    assert environ.get("GOMP_SPINCOUNT") == found


def test_without_proc_the_platform_is_asked(is_: pytest.MonkeyPatch) -> None:
    is_.setattr(processor, "described", dict)
    is_.setattr(processor.platform, "processor", lambda: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD")
    assert processor.is_amd() and processor.name().startswith("AMD64")
    is_.setattr(processor.platform, "processor", lambda: "")
    assert not processor.is_amd() and processor.name() == "unknown"


@pytest.mark.parametrize(
    ("said", "units"),
    [
        ({"flags": "sse avx512f amx_tile amx_bf16"}, True),
        ({"flags": "sse avx512f avx512_bf16"}, True),
        ({"Features": "fp asimd bf16 i8mm"}, True),
        ({"flags": "sse avx2 avx512f avx512_fp16"}, False),
        ({}, False),
    ],
)
def test_units_for_bf16_are_seen(said: dict[str, str], units: bool, is_: pytest.MonkeyPatch) -> None:
    is_.setattr(processor, "described", lambda: said)
    assert processor.has_bf16_units() == units


def test_only_the_first_processor_is_described() -> None:
    described = processor.described()
    text = Path("/proc/cpuinfo")
    if not text.exists():
        assert described == {}
    else:
        assert described and all(name and "\n" not in value for name, value in described.items())
        assert described.get("processor", "0") == "0"


def test_the_command_line_tells_numpy_before_it_is_imported() -> None:
    code = (
        "import sys, os, mgsr.cli.main as cli, mgsr.runtime.processor as p; assert 'numpy' not in sys.modules; "
        "p.described = lambda: {'vendor_id': 'AuthenticAMD', 'cpu family': '25', 'flags': 'avx512f'}; "
        "cli.main(['config', 'configs/demo.yaml']); print(os.environ['NPY_DISABLE_CPU_FEATURES'])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, cwd=root
    )
    assert done.stdout.split()[-1] in ("X86_V4", "AVX512_SKX")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(files: dict[str, str], cores: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor._quota(tmp_path) == cores


@pytest.mark.parametrize(("allowed", "quota", "cores"), [(64, 2, 2), (2, 64, 2), (8, None, 8), (8, 0, 8)])
def test_cores_are_those_of_the_affinity_and_of_the_quota(
    allowed: int, quota: int | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setattr(processor, "_quota", lambda: quota)
    assert processor.usable_cores() == cores


def test_threads_are_no_more_than_cores_which_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.say_once.cache_clear()
    monkeypatch.setattr(processor, "usable_cores", lambda: 4)
    assert [processor.usable_threads(n) for n in (1, 4, 5000, 5000)] == [1, 4, 4, 4]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "5000 threads are asked for" in said and "4 cores: trainer.threads=4" in said
