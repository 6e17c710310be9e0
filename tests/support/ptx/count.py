"""`PYTHONPATH=tests/support python -m ptx.count` prints what kernels issue for each query, by executing PTX.

Two cases of one tile of queries against 2,048 bank rows of 256 columns: a gathered mean over 1.8 % of the
rows, as in the HER2+ sections (200 of 11,372), and a dense one over 9.7 %, as in Visium (2,400 of 24,787).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from retrieval_cases import clustered

from mclst.kernels.cuda.plan import Plan, make_plan
from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.definition.spec import RetrievalSpec
from ptx.build import PtxDriver, ptx_of

QUERIES, ROWS, COLUMNS, GENES, SAMPLE = 128, 2048, 256, 128, 512
CASES = {"gathered": 36, "dense": 198}
# Instructions of PTX by what executes them; the rest, addresses and control above all, is `other`.
UNITS = {
    "tensor": ("mma",),
    "shared": ("ld.shared", "st.shared", "atom.shared", "ldmatrix"),
    "global": ("ld.global", "st.global", "cp.async.cg"),
    "atomic": ("atom.global", "red.global"),
    "float32": ("add.f32", "add.rn.f32", "sub.f32", "mul.f32", "fma.rn.f32", "sub.rn.f32", "mul.rn.f32"),
    "float64": ("add.f64", "add.rn.f64", "sub.f64", "sub.rn.f64", "mul.f64", "mul.rn.f64", "fma.rn.f64"),
    "convert": ("cvt.f64.f32", "cvt.rn.f32.f64", "cvt.rn.f16.f32", "cvt.f32.f16"),
}


def unit_of(opcode: str) -> str:
    """What executes an instruction."""
    if opcode.startswith("ld.param"):
        return "other"
    return next((unit for unit, starts in UNITS.items() if opcode.startswith(starts)), "other")


def counted(k: int, architecture: int = 80) -> dict[str, Counter[str]]:
    """Warp instructions of all queries, by kernel and opcode; `choose_exactly`: of one query that it gets."""
    queries, bank = clustered(QUERIES, ROWS, COLUMNS, genes=GENES)
    driver = PtxDriver(ptx_of(architecture))
    spec = RetrievalSpec(k=k, rank="cosine", distance="l1")
    before = driver.executed()
    cuda = CudaProvider(
        bank.embedding, bank.expression, spec, driver=driver, workspace_bytes=64 << 20, sample=SAMPLE
    )
    prepared = driver.executed()
    cuda.aggregate(queries)
    # The bank is placed once, which is no query's affair.
    counts = {
        kernel: after - (prepared if kernel == "place" else before)[kernel]
        for kernel, after in driver.executed().items()
    }
    listed = driver.executed()["choose_exactly"]
    cuda.aggregate(np.zeros((1, COLUMNS), np.float32))  # without a direction, so none of its keys counts
    counts["choose_exactly"] = driver.executed()["choose_exactly"] - listed
    return {kernel: spent for kernel, spent in counts.items() if spent.total()}


def planned(k: int) -> Plan:
    """The plan of the case that is counted."""
    return make_plan(ROWS, COLUMNS, k, GENES, multiprocessors=3, workspace_bytes=64 << 20, sample=SAMPLE)


def issued(k: int, architecture: int = 80) -> dict[str, Counter[str]]:
    """Warp instructions of all queries, by kernel and unit."""
    by_unit: dict[str, Counter[str]] = {}
    for kernel, spent in counted(k, architecture).items():
        by_unit[kernel] = Counter()
        for opcode, times in spent.items():
            by_unit[kernel][unit_of(opcode)] += times
    return by_unit


def main() -> None:
    for name, k in CASES.items():
        print(f"{name}, k = {k} of {ROWS}: warp instructions a query")
        for kernel, units in issued(k).items():
            row = ", ".join(
                f"{unit} {units[unit] / QUERIES:.1f}" for unit in (*UNITS, "other") if units[unit]
            )
            print(f"  {kernel}: {row}")


if __name__ == "__main__":
    main()
