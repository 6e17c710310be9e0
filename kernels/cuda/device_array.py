"""Zero-copy access to device arrays, by DLPack or `__cuda_array_interface__`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

_CUDA = 2
_FLOAT = 2

UNKNOWN_STREAM = -1
"""Of an array whose pending work may be on any stream."""


@dataclass(frozen=True)
class DeviceArray:
    """A float32 array in C order on a device.

    stream: the stream to wait for before reading, None if there is nothing to wait for, or UNKNOWN_STREAM.
    owner: keeps the memory at `pointer` alive.
    """

    pointer: int
    shape: tuple[int, ...]
    stream: int | None
    owner: Any


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def on_device(array: Any) -> bool:
    """Whether `array` reports that it is on a CUDA device."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == _CUDA


def device_array(name: str, array: Any, stream: int) -> DeviceArray:
    """View `array` without a copy, to be read on `stream`.

    Raises ValueError, calling it `name`, if it is not float32 in C order.
    """
    # DLPack's producer makes our stream wait; torch's interface, version 2, says nothing of streams.
    if hasattr(array, "__dlpack__"):
        try:
            view, float32, contiguous = _by_dlpack(array, stream)
        except BufferError as error:
            raise ValueError(f"{name} on the device cannot be shared ({error}); detach it first") from error
    else:
        view, float32, contiguous = _by_interface(array, array.__cuda_array_interface__)
    if not float32 or not contiguous:
        raise ValueError(f"{name} on the device must be float32 in C order; convert it there first")
    return view


def _by_interface(array: Any, interface: dict[str, Any]) -> tuple[DeviceArray, bool, bool]:
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    stated = interface.get("version", 0) >= 3 and "stream" in interface
    stream = interface["stream"] if stated else UNKNOWN_STREAM
    view = DeviceArray(int(interface["data"][0]), shape, stream, array)
    return view, interface["typestr"] in ("<f4", "=f4"), strides is None or _c_contiguous(shape, strides, 4)


def _by_dlpack(array: Any, stream: int) -> tuple[DeviceArray, bool, bool]:
    # The capsule is never consumed, so its destructor frees the tensor; DeviceArray.owner keeps it alive.
    capsule = array.__dlpack__(stream=stream)
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(read(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    contiguous = not tensor.strides or _c_contiguous(
        shape, [tensor.strides[i] for i in range(tensor.ndim)], 1
    )
    # The data pointer of an empty tensor may be null.
    pointer = (tensor.data or 0) + tensor.byte_offset
    float32 = (tensor.code, tensor.bits, tensor.lanes) == (_FLOAT, 32, 1)
    return DeviceArray(pointer, shape, None, capsule), float32, contiguous


def _c_contiguous(shape: tuple[int, ...], strides: Any, step: int) -> bool:
    """Whether strides are those of C order; axes of length 1 and empty arrays fit any."""
    if 0 in shape:
        return True
    for length, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if length > 1 and stride != step:
            return False
        step *= length
    return True
