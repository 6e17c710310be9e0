"""Which precisions this processor or GPU computes in by itself, and by which instructions."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

PRODUCTS: dict[tuple[str, str], dict[str, str]] = {
    ("openvino", "bf16"): {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX-512 BF16"},
    ("openvino", "int8"): {
        "amx_int8": "AMX-INT8",
        "avx512_vnni": "AVX-512 VNNI",
        "avx_vnni": "AVX-VNNI",
        "avx512bw": "AVX-512 BW",
        "avx2": "AVX2",
        "i8mm": "I8MM",
        "asimddp": "dot product",
    },
    ("cpu", "fp16"): {"asimdhp": "NEON fp16"},
    ("cpu", "int8"): {
        "avx512_vnni": "AVX-512 VNNI",
        "avx_vnni": "AVX-VNNI",
        "i8mm": "I8MM",
        "asimddp": "dot product",
    },
}
"""(provider, precision) → instruction set by the kernel's flag, the fastest first. fp32 runs everywhere."""

SYSCTL = {
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512vnni": "avx512_vnni",
}
"""macOS's names of the same features."""

FIRST_GPU = {"fp32": 0.0, "fp16": 7.0, "bf16": 8.0, "int8": 7.5}
"""Compute capability from which tensor cores multiply in a precision."""


@cache
def processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name and its features by Linux's flags; none where the system does not tell."""
    if platform.system() == "Darwin":
        return _of_macos()
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = {}
    for line in reversed(lines):
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def processor_id() -> str:
    """Return what tells one processor from another: its name, and a hash of its features."""
    name, features = processor()
    return f"{name}, features {hashlib.sha256(' '.join(sorted(features)).encode()).hexdigest()[:12]}"


def instructions_of(provider: str, precision: str) -> str | None:
    """Return the instruction set by which a provider on the CPU multiplies in a precision.

    Parameters
    ----------
    provider : {"cpu", "openvino"}
    precision : str

    Returns
    -------
    str or None
        Such as "AVX-512 VNNI"; "" for fp32, which needs none. None where the provider or the processor has no
        way but converting to fp32.
    """
    if precision == "fp32":
        return ""
    features = processor()[1]
    sets = PRODUCTS.get((provider, precision), {})
    return next((name for flag, name in sets.items() if flag in features), None)


def gpu_multiplies(precision: str, compute_capability: str) -> bool:
    """Whether a GPU's tensor cores multiply in a precision."""
    return float(compute_capability) >= FIRST_GPU[precision]


def _of_macos() -> tuple[str, frozenset[str]]:
    names = ["machdep.cpu.brand_string", *SYSCTL]
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", *names], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or platform.machine(), frozenset()
    values = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    name = values.get(names[0], platform.machine())
    return name, frozenset(flag for key, flag in SYSCTL.items() if values.get(key) == "1")
