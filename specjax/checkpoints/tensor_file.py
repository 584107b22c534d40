"""A safetensors file with SHA-256 of the whole and of every tensor, written in one pass, and checked.

Tensors go through a few megabytes of scratch memory, so that a large model needs no second room in memory and
views of a mapped file are read when their turn comes. Writing and hashing take longer than copying and run
beside it in threads.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from specjax.errors import ModelError
from specjax.typing import AnyArray

Described = dict[str, dict[str, Any]]  # by tensor: shape, dtype, stored, sha256

_CHUNK = 4 << 20  # bytes; fits a processor's cache
_STRIP = 128  # columns of a transposed matrix that are copied together, twice as fast as row by row
_SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_tensors(
    path: Path, tensors: Mapping[str, AnyArray], half: tuple[str, ...]
) -> tuple[Described, str]:
    """Write a safetensors file; return the tensors' entries in the manifest and the file's SHA-256.

    Larger items come first, which keeps all of them aligned. float32 tensors whose name matches a shell
    pattern in `half` are stored as float16.

    Raises:
        ModelError: a type that cannot be stored, or a value that float16 cannot hold.
    """
    stored = {
        name: np.dtype(np.float16) if _matches(name, a, half) else a.dtype for name, a in tensors.items()
    }
    order = sorted(tensors, key=lambda name: (-stored[name].itemsize, name))
    described: Described = {}
    with _HashedFile(path) as file:
        file.write(_header(order, tensors, stored))
        for name in order:
            sha256 = file.write_tensor(name, tensors[name], stored[name])
            described[name] = {
                "shape": list(tensors[name].shape),
                "dtype": str(tensors[name].dtype),
                "stored": str(stored[name]),
                "sha256": sha256,
            }
    for entry in described.values():
        entry["sha256"] = entry["sha256"].hexdigest()  # only now have the threads seen everything
    return {name: described[name] for name in sorted(described)}, file.sha256.hexdigest()


def read_tensors(path: Path, sha256: str, expected: Mapping[str, Mapping[str, Any]]) -> dict[str, AnyArray]:
    """Read the tensors of a file, all there and all as the manifest says.

    The hash of the whole file decides; those of single tensors are compared only to name the damaged one.

    Raises:
        ModelError: it cannot be read, or differs from the manifest; the tensor is named.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        whole = sha256_of(path) == sha256
        tensors: dict[str, AnyArray] = load_file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is damaged: {[*str(error).splitlines(), type(error).__name__][0]}"
        ) from None
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise ModelError(
                f"{path} {'lacks' if name in expected else 'has an unknown'} tensor {name[:200]}"
            )
        array, want = tensors[name], expected[name]
        if str(array.dtype) != want["stored"] or list(array.shape) != want["shape"]:
            raise ModelError(
                f"{path}: tensor {name} is {array.dtype}{list(array.shape)}, "
                f"the manifest says {want['stored']}{want['shape']}"
            )
        if not whole and hashlib.sha256(_bytes_of(array)).hexdigest() != want["sha256"]:
            raise ModelError(f"{path} is damaged in tensor {name}: SHA-256 differs from the manifest's")
    if not whole:
        raise ModelError(f"{path} is damaged: its SHA-256 is not the one in the manifest")
    return tensors


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(order: list[str], tensors: Mapping[str, AnyArray], stored: Mapping[str, np.dtype[Any]]) -> bytes:
    """What a safetensors file starts with: its length in 8 bytes, and where each tensor is."""
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].size * stored[name].itemsize
        if str(stored[name]) not in _SAFETENSORS_NAMES:
            raise ModelError(f"tensor {name} has the type {stored[name]}, which cannot be stored")
        kind = _SAFETENSORS_NAMES[str(stored[name])]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _HashedFile:
    """A file that is written and hashed in threads while the next bytes are made.

    `sha256` and what `write_tensor` returns are complete once the context is left. Leaving it raises the
    OSError of a write that failed.
    """

    def __init__(self, path: Path) -> None:
        self.sha256 = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")
        self._threads = [ThreadPoolExecutor(max_workers=1) for _ in range(3)]  # one each keeps the order
        self._writes: list[Future[Any]] = []
        self._scratch = deque(_Scratch() for _ in range(3))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            for thread in self._threads:
                thread.shutdown()
        for write in self._writes if error is None else []:
            write.result()

    def write(self, data: bytes | memoryview, *hashes: Any) -> list[Future[Any]]:
        """Write bytes and hash them, with other hashes too; returns the tasks that still read them."""
        sinks = (self._file.write, self.sha256.update, *(other.update for other in hashes))
        tasks = [thread.submit(sink, data) for thread, sink in zip(self._threads, sinks, strict=False)]
        self._writes.append(tasks[0])
        return tasks

    def write_tensor(self, name: str, array: AnyArray, dtype: np.dtype[Any]) -> Any:
        """Write an array as `dtype` in C order; returns the hash of its bytes."""
        own = hashlib.sha256()
        for data, scratch in self._chunks(name, array, dtype):
            tasks = self.write(data, own)
            if scratch is not None:
                scratch.users = tasks
        return own

    def _chunks(
        self, name: str, array: AnyArray, dtype: np.dtype[Any]
    ) -> Iterator[tuple[memoryview, "_Scratch | None"]]:
        """The bytes of an array, a few megabytes at a time, each with the scratch memory that holds them."""
        if array.flags.c_contiguous and array.dtype == dtype:
            data = _bytes_of(array)
            for start in range(0, len(data), _CHUNK):
                yield data[start : start + _CHUNK], None
            return
        rows = np.atleast_1d(array)
        step = max(1, _CHUNK // max(1, rows[:1].size * dtype.itemsize))
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            piece = _to_half(name, piece) if piece.dtype != dtype else piece
            self._scratch.rotate()
            room = self._scratch[0].room(piece)
            _copy(piece, room)
            yield _bytes_of(room), self._scratch[0]


class _Scratch:
    """Memory that is used again: new pages cost more than the copying."""

    def __init__(self) -> None:
        self.users: list[Future[Any]] = []
        self._memory = np.empty(0, np.uint8)

    def room(self, like: AnyArray) -> AnyArray:
        """Return an array in C order of that shape and type, once nobody reads the last one."""
        for user in self.users:
            user.result()
        if len(self._memory) < like.nbytes:
            self._memory = np.empty(max(like.nbytes, _CHUNK), np.uint8)
        return self._memory[: like.nbytes].view(like.dtype).reshape(like.shape)


def _copy(source: AnyArray, target: AnyArray) -> None:
    """Copy into C order; a transposed matrix by strips."""
    if source.ndim != 2:
        target[...] = source
        return
    for start in range(0, source.shape[1], _STRIP):
        target[:, start : start + _STRIP] = source[:, start : start + _STRIP]


def _matches(name: str, array: AnyArray, patterns: tuple[str, ...]) -> bool:
    """Whether a tensor is to be stored as float16."""
    return array.dtype == np.float32 and any(fnmatchcase(name, p) for p in patterns)


def _to_half(name: str, array: AnyArray) -> NDArray[np.float16]:
    """Round to float16, unless a finite value would become infinite."""
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(array)):
        raise ModelError(f"tensor {name} has values beyond 65504, which float16 cannot hold")
    return rounded


def _bytes_of(array: AnyArray) -> memoryview:
    """The bytes of an array in C order."""
    return array.reshape(-1).view(np.uint8).data
