"""What kind of processor this is, and what libraries had better be told about it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, MutableMapping
from functools import cache
from importlib.metadata import version
from pathlib import Path


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
