"""What kind of processor this is, how much of it this process may use, and what libraries are told about it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, MutableMapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from mgsr.runtime.progress import say_once
from mgsr.runtime.wording import plural


@cache
def described() -> Mapping[str, str]:
    """What Linux says of the first processor (`vendor_id`, `model name`, `flags`...); empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def name() -> str:
    """The model name of the processor, or "unknown"."""
    return described().get("model name") or platform.processor() or "unknown"


def is_amd() -> bool:
    """Whether the processor is one of AMD's."""
    # Windows puts the vendor into the processor's name
    return "AuthenticAMD" in (described().get("vendor_id") or platform.processor())


def has_bf16_units() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32: by AMX or AVX512-BF16, or on ARM."""
    said = described()
    flags = f"{said.get('flags', '')} {said.get('Features', '')}".split()
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags)


def usable_cores() -> int:
    """Cores that this process may use: of its affinity, and of the quota of a container (cgroup), rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota() or allowed))


def _quota(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Cores of a container's quota, or None: cgroup v2 has `max 100000` or `250000 100000` in one file, v1 two."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((group / "cpu" / name).read_text(encoding="ascii") for name in names)
        return -(-int(quota) // int(period)) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        # no such files, or no quota (`max`)
        return None


def usable_threads(wanted: int) -> int:
    """As many threads as wanted, but no more than there are cores for; said once.

    More of them wait for one another at every step; of thousands a machine stands still.
    """
    cores = usable_cores()
    if wanted > cores:
        say_once(
            f"{wanted} threads are asked for, and this process may use {plural(cores, 'core')}: "
            f"trainer.threads={cores}"
        )
    return min(wanted, cores)


def prefer_quick_sorts(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have numpy sort with AVX2 where AVX-512 is the slower of the two: on Zen 4.

    Its instruction that packs the chosen lanes into memory takes some hundred cycles there; partitioning, as the
    ranking of classes does, takes nine times as long by it. numpy looks at this when it is imported. A setting of
    the user's stays.
    """
    processor = described()
    zen_4 = is_amd() and processor.get("cpu family") == "25" and "avx512f" in processor.get("flags", "").split()
    if zen_4:
        numpy = tuple(map(int, version("numpy").split(".")[:2]))
        environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4" if numpy >= (2, 4) else "AVX512_SKX")


def rest_soon(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have PyTorch's threads sleep sooner after an operation: they spin for milliseconds otherwise.

    Meanwhile they take the cores from the threads of the objective's loops (`mgsr.runtime.threads`), which took a
    tenth longer for it. OpenMP looks at this when PyTorch is imported. A setting of the user's stays.
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", "50000")
