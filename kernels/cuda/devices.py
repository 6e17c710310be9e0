"""Opening a CUDA device, by PyCUDA or by cuda-bindings.

Both use the device's primary context, shared with torch, ONNX Runtime and TensorRT in the process. Neither is
imported before a device is opened.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from importlib import import_module
from importlib.util import find_spec

from mclst.kernels.cuda.driver import Driver, NoDevice
from mclst.kernels.definition.contract import ProviderError


def open_driver(device: int = 0) -> Driver:
    """Open device number `device`, by PyCUDA if it can be imported, else by cuda-bindings.

    Raises ProviderError if neither is installed or there is no such device.
    """
    if find_spec("pycuda") is not None:
        try:
            import_module("pycuda.driver")
        except ImportError as error:  # such as built for another CUDA
            logging.getLogger("mclst").warning("PyCUDA cannot be imported (%s); trying cuda-bindings", error)
        else:
            from mclst.kernels.cuda.pycuda_driver import PyCuda

            return PyCuda(device)
    try:
        spec = find_spec("cuda.bindings.driver")
    except ModuleNotFoundError:
        spec = None
    neither = (
        "retrieval with provider 'cuda' needs PyCUDA or cuda-bindings, and neither can be imported; "
        "install mclst[gpu]"
    )
    if spec is None:
        raise ProviderError(neither)
    from mclst.kernels.cuda.cuda_bindings import CudaBindings

    try:
        return CudaBindings(device)
    except ImportError as error:
        raise ProviderError(neither) from error


def _library() -> ctypes.CDLL:
    """NVIDIA's driver; OSError without it."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def driver_is_installed() -> bool:
    """Whether NVIDIA's driver can be loaded; without a binding, which takes time to import."""
    try:
        _library()
    except OSError:
        return False
    return True


def count_devices() -> int:
    """CUDA devices of this machine, asked without a binding."""
    count = ctypes.c_int(0)
    try:
        library = _library()
        answers = (library.cuInit(0), library.cuDeviceGetCount(ctypes.byref(count)))
    except (AttributeError, OSError):
        return 0
    return 0 if any(answers) else count.value


def first_device() -> Driver | None:
    """The first device of this machine; None without one.

    Raises ProviderError where there is a device and no binding to use it.
    """
    if not count_devices():
        return None
    try:
        return open_driver()
    except (NoDevice, OSError):
        return None
