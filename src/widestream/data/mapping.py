"""Files as arrays that are read where they are touched, and no open file left behind.

`mmap.mmap`, and so `numpy.memmap`, keeps a descriptor open for as long as the array lives: thousands of shards would
run into the limit on open files (often 1024). The system's own mmap needs none once it has mapped; Python can let go of
it from 3.13 on.
"""

import ctypes
import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class _Mapping:
    """A file in memory, until nothing refers to it any more. numpy reads `__array_interface__` and holds on to it."""

    def __init__(self, path: Path, dtype: "np.dtype[Any]"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            if size == 0:
                raise OSError(errno.EINVAL, "it is empty", str(path))
            self._size = size
            self._address: int | None = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        finally:
            os.close(descriptor)
        if self._address == _FAILED:
            self._address = None
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        self.__array_interface__ = {
            "version": 3,
            "data": (self._address, True),
            "shape": (size // dtype.itemsize,),
            "typestr": dtype.str,
        }

    def __del__(self) -> None:
        if getattr(self, "_address", None) is not None:
            _LIBC.munmap(self._address, self._size)


def map_file(path: Path, dtype: str) -> np.ndarray:
    """A file of little-endian numbers as an array that cannot be written to.

    Args:
        path: the file; it must not become shorter while the array lives.
        dtype: of its numbers.

    Raises:
        OSError: it cannot be opened or mapped, or is empty.
    """
    return np.asarray(_Mapping(path, np.dtype(dtype).newbyteorder("<")))
