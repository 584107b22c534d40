"""Read the tensors of a PyTorch file as NumPy arrays.

Tensors are rebuilt as `StoredTensor`, a description that is checked against its storage. Its method `array`
returns a read-only view of the mapped file with any strides, so that shared storages remain shared.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert.archive import Archive
from checkpoints_convert.unpickle import Constructors, Global, Opaque, unpickle
from specjax.errors import ModelError
from specjax.typing import AnyArray

# NumPy types by their names in torch, and the names by the storage classes that preceded untyped storages.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "complex64": np.complex64,
        "complex128": np.complex128,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    }.items()
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

_MAX_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """A member of the file with the data of tensors; dtype is None if each tensor has its own."""

    archive: Archive
    member: str
    dtype: np.dtype[Any] | None
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The place of a tensor in the file; offset and strides are in items, as in torch."""

    storage: Storage
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes, without sharing."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> AnyArray:
        """Return a read-only view of the file (a copy if the tensor is big-endian, negated or conjugated).

        Raises:
            ModelError: The storage is damaged.
        """
        data = self.storage.archive.read(self.storage.member)
        item = self.dtype.itemsize
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        stored = self.dtype.newbyteorder(">") if _is_big_endian(self.storage.archive) else self.dtype
        array: AnyArray = np.ndarray(
            self.shape, stored, data, self.offset * item, tuple(stride * item for stride in self.strides)
        )
        array = array if stored == self.dtype else array.astype(self.dtype)
        array = array.conj() if self.conjugate else array
        return -array if self.negative else array


class TorchFile:
    """The contents of a PyTorch file, read by `open_torch_file`.

    Attributes:
        content: The saved object, made of dicts, lists, plain values, `StoredTensor` and `Opaque`.
        archive: The zip container.
    """

    def __init__(self, content: Any, archive: Archive) -> None:
        self.content = content
        self.archive = archive

    @property
    def hyper_parameters(self) -> Mapping[str, Any]:
        """The hyper-parameters of a Lightning file; {} if it has none."""
        found = self.content.get("hyper_parameters") if isinstance(self.content, dict) else None
        found = found.items if isinstance(found, Opaque) else found
        return found if isinstance(found, dict) else {}

    def state_dict(self) -> dict[str, StoredTensor]:
        """Return the tensors of the model by their names in the file.

        Raises:
            ModelError: There is no state_dict, or it has entries that are not tensors.
        """
        content = self.content if isinstance(self.content, dict) else {}
        state = next((content[key] for key in ("state_dict", "model_state_dict") if key in content), content)
        if not isinstance(state, dict) or not any(
            isinstance(value, StoredTensor) for value in state.values()
        ):
            raise ModelError(f"{self.archive.path} has no state_dict")
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, StoredTensor):
                raise ModelError(
                    f"{self.archive.path}: {str(name)[:200]!r} in the state_dict is not a tensor"
                )
        # With strides of zero, one number can stand for a tensor of any size; no model is stored like this.
        if sum(tensor.nbytes for tensor in state.values()) > 4 * self.archive.size + (64 << 20):
            raise ModelError(f"{self.archive.path} describes tensors far larger than the file")
        return state


def open_torch_file(path: str | Path) -> TorchFile:
    """Open a PyTorch zip file without running code from it; tensors are read only when `array` is called.

    Raises:
        ModelError: The file has another format or is damaged, or a tensor extends beyond its storage.
    """
    archive = Archive(path)
    if "data.pkl" not in archive:
        raise ModelError(f"{path} is not a PyTorch file: it has no data.pkl")
    if any(name == "constants.pkl" or name.startswith("code/") for name in archive.names):
        raise ModelError(f"{path} is a TorchScript program, not a file of weights")
    _check_byte_order(archive)
    try:
        content = unpickle(archive.read("data.pkl"), _CONSTRUCTORS, lambda id_: _storage(archive, id_))
    except ModelError as error:
        raise ModelError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return TorchFile(content, archive)


def _is_big_endian(archive: Archive) -> bool:
    return "byteorder" in archive and bytes(archive.read("byteorder")) == b"big"


def _check_byte_order(archive: Archive) -> None:
    order = bytes(archive.read("byteorder")[:20]) if "byteorder" in archive else b"little"
    if order not in (b"little", b"big"):
        raise ModelError(f"{archive.path} has the unknown byte order {order.decode(errors='replace')!r}")


def _storage(archive: Archive, persistent_id: Any) -> Storage:
    """Return the member for a persistent id ("storage", class, key, device, count)."""
    kind, typed, key, _, count = persistent_id
    if (
        kind != "storage"
        or not isinstance(typed, Global)
        or not isinstance(key, str)
        or type(count) is not int
    ):
        raise ModelError("a persistent id does not describe a storage")
    module, _, name = typed.name.rpartition(".")
    if module not in ("torch", "torch.storage") or name not in (*STORAGES, "UntypedStorage"):
        raise ModelError(f"a storage has the unsupported type {typed.name}")
    dtype = DTYPES[STORAGES[name]] if name in STORAGES else None
    member = f"data/{key}"
    size, claimed = archive.member_size(member), count * (dtype.itemsize if dtype else 1)
    if size != claimed:
        raise ModelError(f"storage {key!r} has {size} bytes, but {claimed} are declared")
    return Storage(archive, member, dtype, size)


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> StoredTensor:
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise TypeError("a tensor has no typed storage")
    return _checked(storage, storage.dtype, offset, shape, strides, metadata)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, Global):
        raise TypeError("a tensor has no storage or no type")
    name = dtype.name.removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(f"a tensor has the unsupported type {dtype.name}")
    return _checked(storage, DTYPES[name], offset, shape, strides, metadata)


def _checked(
    storage: Storage, dtype: np.dtype[Any], offset: Any, shape: Any, strides: Any, metadata: Any
) -> StoredTensor:
    numbers = (offset, *shape, *strides)
    if any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers):
        raise ModelError("the offset, shape or strides of a tensor are invalid")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ModelError("the shape and strides of a tensor differ in length or have too many dimensions")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and (last + 1) * dtype.itemsize > storage.size:
        raise ModelError(f"a tensor extends beyond its storage {storage.member!r}")
    flags = metadata if isinstance(metadata, dict) else {}
    return StoredTensor(
        storage,
        dtype,
        offset,
        tuple(shape),
        tuple(strides),
        bool(flags.get("conj")) and dtype.kind == "c",
        bool(flags.get("neg")),
    )


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    if not isinstance(function, Global) or function.name not in _TENSORS:
        raise ModelError("a tensor belongs to an unknown class")
    return _TENSORS[function.name](*args)


def _ordered_dict(*items: Any) -> dict[Any, Any]:
    if items:
        raise TypeError("an OrderedDict has arguments")
    return {}


_TENSORS: Constructors = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
_CONSTRUCTORS: Constructors = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": lambda sizes=(): sizes,
}
