"""Write a zip file that `torch.load` reads, `weights_only=True` too, from plain values and NumPy arrays."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.torch_file import STORAGES
from specjax.atomic import atomic_file
from specjax.errors import ModelError
from specjax.typing import AnyArray

_CLASSES = {dtype: storage for storage, dtype in STORAGES.items()}
_ALIGNMENT = 64
_HEADER = 30  # bytes of a zip member's local header before its name


def write_torch_file(path: str | Path, content: Any) -> None:
    """Write dicts, lists, tuples, plain values and arrays as a PyTorch file; arrays become tensors.

    A member is written when its turn comes, so views of mapped files cost no memory.

    Raises:
        ModelError: an array of a type that PyTorch has no storage for.
    """
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        pickled = _Pickled(content)
        _write(archive, "data.pkl", pickled.data)
        _write(archive, "byteorder", b"little")
        for index, array in enumerate(pickled.arrays):
            contiguous = np.asarray(array, order="C")
            raw = contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""
            _write(archive, f"data/{index}", raw)
        _write(archive, "version", b"3\n")


def _write(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Write a member whose data start at a multiple of 64 bytes, so that they can be mapped."""
    info = zipfile.ZipInfo(f"archive/{name}")
    assert archive.fp is not None
    start = archive.fp.tell() + _HEADER + len(info.filename) + 4
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, data)


class _Pickled:
    """The pickle (protocol 2) of a content, and its arrays in the order of their storages."""

    def __init__(self, content: Any) -> None:
        self.arrays: list[AnyArray] = []
        self.parts: list[bytes] = [b"\x80\x02"]
        self.put(content)
        self.data = b"".join([*self.parts, b"."])

    def put(self, value: Any) -> None:
        for kind, write in _WRITERS:
            if isinstance(value, kind):
                write(self, value)
                return
        raise TypeError(f"cannot write {type(value).__name__}")

    def integer(self, value: int) -> None:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self.parts.append(b"\x8a" + bytes([len(data)]) + data)

    def text(self, value: str) -> None:
        data = value.encode()
        self.parts.append(b"X" + struct.pack("<I", len(data)) + data)

    def sequence(self, value: list[Any] | tuple[Any, ...]) -> None:
        self.parts.append(b"(")
        for item in value:
            self.put(item)
        self.parts.append(b"t" if isinstance(value, tuple) else b"l")

    def mapping(self, value: dict[str, Any]) -> None:
        self.parts.append(b"}(")
        for key, item in value.items():
            self.put(key)
            self.put(item)
        self.parts.append(b"u")

    def tensor(self, value: AnyArray) -> None:
        """Write torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())."""
        if str(value.dtype) not in _CLASSES:
            raise ModelError(f"a PyTorch file cannot hold {value.dtype}")
        strides = [int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim)]
        self.parts.append(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self.text("storage")
        self.parts.append(f"ctorch\n{_CLASSES[str(value.dtype)]}\n".encode())
        self.text(str(len(self.arrays)))
        self.text("cpu")
        self.put(value.size)
        self.parts.append(b"tQ")
        for item in (0, tuple(value.shape), tuple(strides), False):
            self.put(item)
        self.parts.append(b"ccollections\nOrderedDict\n)RtR")
        self.arrays.append(value)


def _constant(code: dict[Any, bytes]) -> Callable[[_Pickled, Any], None]:
    return lambda pickled, value: pickled.parts.append(code[value])


_WRITERS: tuple[tuple[Any, Callable[[_Pickled, Any], None]], ...] = (
    (bool | None, _constant({None: b"N", True: b"\x88", False: b"\x89"})),
    (int, _Pickled.integer),
    (float, lambda pickled, value: pickled.parts.append(b"G" + struct.pack(">d", value))),
    (str, _Pickled.text),
    (list | tuple, _Pickled.sequence),
    (dict, _Pickled.mapping),
    (np.ndarray, _Pickled.tensor),
)
