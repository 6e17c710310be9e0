"""The self-test of retrieval under NVIDIA's compute-sanitizer: every kernel, on small cases."""

from __future__ import annotations

import subprocess
import sys

from mclst.benchmarks.gpu_check.device import find_program

TOOLS = ("memcheck", "racecheck")


def main() -> None:
    """Run the self-test here, or, without an argument, under each tool."""
    if len(sys.argv) > 1:
        from mclst.kernels.cuda.devices import open_driver
        from mclst.kernels.cuda.self_test import run

        sys.exit(run(open_driver()) or 0)
    program = find_program("compute-sanitizer")
    if program is None:
        sys.exit("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    here = [sys.executable, "-m", "mclst.benchmarks.gpu_check.sanitize", "here"]
    for tool in TOOLS:
        print(f"--- {tool}", flush=True)
        done = subprocess.run([program, "--tool", tool, "--error-exitcode", "9", *here], check=False)
        if done.returncode:
            sys.exit(f"{tool} ends with {done.returncode}")


if __name__ == "__main__":
    main()
