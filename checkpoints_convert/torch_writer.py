"""Write plain values and NumPy arrays as a PyTorch file for `torch.load` with `weights_only=True`."""

import struct
import zipfile
from pathlib import Path
from typing import TypeAlias, Union

import numpy as np

from checkpoints_convert.torch_file import STORAGES
from specjax.atomic import atomic_file
from specjax.errors import ModelError
from specjax.typing import AnyArray

Content: TypeAlias = Union[
    bool, int, float, str, AnyArray, "list[Content]", "tuple[Content, ...]", "dict[str, Content]", None
]

_CLASSES = {dtype: storage for storage, dtype in STORAGES.items()}
_ALIGNMENT = 64
_HEADER = 30  # bytes of the local header of a zip member before its name


def write_torch_file(path: str | Path, content: Content) -> None:
    """Write dicts, lists, tuples, plain values and arrays as a PyTorch file; arrays become tensors.

    Arrays are read only when they are written, so that views of mapped files take no memory.

    Raises:
        ModelError: PyTorch has no storage for the type of an array.
    """
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        pickler = _Pickler(content)
        _write(archive, "data.pkl", pickler.data)
        _write(archive, "byteorder", b"little")
        for index, array in enumerate(pickler.arrays):
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


class _Pickler:
    """The pickle (protocol 2) of a content, and its arrays in the order of their storages."""

    def __init__(self, content: Content) -> None:
        self.arrays: list[AnyArray] = []
        self.parts: list[bytes] = [b"\x80\x02"]
        self.put(content)
        self.data = b"".join([*self.parts, b"."])

    def put(self, value: Content) -> None:
        match value:
            case None:
                self.parts.append(b"N")
            case bool():  # before int, of which it is a subclass
                self.parts.append(b"\x88" if value else b"\x89")
            case int():
                self.integer(value)
            case float():
                self.parts.append(b"G" + struct.pack(">d", value))
            case str():
                self.text(value)
            case list() | tuple():
                self.sequence(value)
            case dict():
                self.mapping(value)
            case np.ndarray():
                self.tensor(value)
            case _:
                raise TypeError(f"cannot write {type(value).__name__}")

    def integer(self, value: int) -> None:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self.parts.append(b"\x8a" + bytes([len(data)]) + data)

    def text(self, value: str) -> None:
        data = value.encode()
        self.parts.append(b"X" + struct.pack("<I", len(data)) + data)

    def sequence(self, value: list[Content] | tuple[Content, ...]) -> None:
        self.parts.append(b"(")
        for item in value:
            self.put(item)
        self.parts.append(b"t" if isinstance(value, tuple) else b"l")

    def mapping(self, value: dict[str, Content]) -> None:
        self.parts.append(b"}(")
        for key, item in value.items():
            self.put(key)
            self.put(item)
        self.parts.append(b"u")

    def tensor(self, value: AnyArray) -> None:
        """Write torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())."""
        if str(value.dtype) not in _CLASSES:
            raise ModelError(f"PyTorch has no storage for {value.dtype}")
        strides = [int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim)]
        self.parts.append(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self.text("storage")
        self.parts.append(f"ctorch\n{_CLASSES[str(value.dtype)]}\n".encode())
        self.text(str(len(self.arrays)))
        self.text("cpu")
        self.put(value.size)
        self.parts.append(b"tQ")
        self.put(0)
        self.sequence(value.shape)
        self.sequence(tuple(strides))
        self.put(False)
        self.parts.append(b"ccollections\nOrderedDict\n)RtR")
        self.arrays.append(value)
