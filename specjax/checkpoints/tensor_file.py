"""Write safetensors files and their SHA-256 hashes in one pass, and read and verify them.

Tensors are copied through buffers of a few megabytes, so that a large model is never in memory twice and
views of a mapped file are read only when they are written. Writing and hashing take longer than copying and
run in threads.
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

Entries = dict[str, dict[str, Any]]  # by tensor: shape, dtype, stored (the dtype on disk), sha256
Hash = Any  # of hashlib, whose type has no public name

_CHUNK = 4 << 20  # bytes; fits in the cache of a CPU
_STRIP = 128  # columns of a transposed matrix copied at once, twice as fast as row by row
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


def write_tensors(path: Path, tensors: Mapping[str, AnyArray], half: tuple[str, ...]) -> tuple[Entries, str]:
    """Write a safetensors file; return the manifest entries of its tensors and its SHA-256.

    Tensors are sorted by decreasing item size, which keeps all of them aligned. float32 tensors whose names
    match a shell pattern in `half` are stored as float16.

    Raises:
        ModelError: A tensor has a type that cannot be stored or a value that float16 cannot represent.
    """
    stored = {
        name: np.dtype(np.float16) if _matches(name, a, half) else a.dtype for name, a in tensors.items()
    }
    order = sorted(tensors, key=lambda name: (-stored[name].itemsize, name))
    with _HashedFile(path) as file:
        file.write(_header(order, tensors, stored))
        hashes = {name: file.write_tensor(name, tensors[name], stored[name]) for name in order}
    entries = {
        name: {
            "shape": list(tensors[name].shape),
            "dtype": str(tensors[name].dtype),
            "stored": str(stored[name]),
            "sha256": hashes[name].hexdigest(),  # complete only now that the threads have finished
        }
        for name in sorted(tensors)
    }
    return entries, file.sha256.hexdigest()


def read_tensors(path: Path, sha256: str, expected: Mapping[str, Mapping[str, Any]]) -> dict[str, AnyArray]:
    """Read the tensors of a file and verify them against the entries in the manifest.

    The file is verified by the hash of the whole; the hashes of tensors serve to name a damaged one.

    Raises:
        ModelError: The file cannot be read or differs from the manifest; the message names the tensor.
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
                f"{path} {'lacks' if name in expected else 'has the unknown'} tensor {name[:200]}"
            )
        array, want = tensors[name], expected[name]
        if str(array.dtype) != want["stored"] or list(array.shape) != want["shape"]:
            raise ModelError(
                f"{path}: tensor {name} is {array.dtype}{list(array.shape)},"
                f" but {want['stored']}{want['shape']} in the manifest"
            )
        if not whole and hashlib.sha256(_bytes_of(array)).hexdigest() != want["sha256"]:
            raise ModelError(
                f"{path} is damaged in tensor {name}: its SHA-256 differs from that in the manifest"
            )
    if not whole:
        raise ModelError(f"{path} is damaged: its SHA-256 differs from that in the manifest")
    return tensors


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(order: list[str], tensors: Mapping[str, AnyArray], stored: Mapping[str, np.dtype[Any]]) -> bytes:
    """Return the header: its length in 8 bytes, then the type, shape and offsets of each tensor as JSON."""
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].size * stored[name].itemsize
        if str(stored[name]) not in _SAFETENSORS_NAMES:
            raise ModelError(f"tensor {name} has the type {stored[name]}, which safetensors cannot store")
        kind = _SAFETENSORS_NAMES[str(stored[name])]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _HashedFile:
    """A file that threads write and hash while the next chunk is prepared.

    `sha256` and the hashes that `write_tensor` returns are complete when the context exits. Exiting raises
    the OSError of a failed write.
    """

    def __init__(self, path: Path) -> None:
        self.sha256 = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")
        self._threads = [
            ThreadPoolExecutor(max_workers=1) for _ in range(3)
        ]  # one worker each, so that chunks stay in order
        self._writes: list[Future[Any]] = []
        self._buffers = deque(_Buffer() for _ in range(3))

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

    def write(self, data: bytes | memoryview, *hashes: Hash) -> list[Future[Any]]:
        """Write bytes and update the file's and other hashes; return the tasks that read the bytes."""
        sinks = (self._file.write, self.sha256.update, *(other.update for other in hashes))
        tasks = [thread.submit(sink, data) for thread, sink in zip(self._threads, sinks, strict=False)]
        self._writes.append(tasks[0])
        return tasks

    def write_tensor(self, name: str, array: AnyArray, dtype: np.dtype[Any]) -> Hash:
        """Write an array as `dtype` in C order and return the hash of its bytes."""
        own = hashlib.sha256()
        for data, buffer in self._chunks(name, array, dtype):
            tasks = self.write(data, own)
            if buffer is not None:
                buffer.readers = tasks
        return own

    def _chunks(
        self, name: str, array: AnyArray, dtype: np.dtype[Any]
    ) -> Iterator[tuple[memoryview, "_Buffer | None"]]:
        """Yield the bytes of an array in chunks of a few megabytes, each with the buffer that holds it."""
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
            self._buffers.rotate()
            copy = self._buffers[0].array_like(piece)
            _copy(piece, copy)
            yield _bytes_of(copy), self._buffers[0]


class _Buffer:
    """Reusable memory: allocating new pages takes longer than copying."""

    def __init__(self) -> None:
        self.readers: list[Future[Any]] = []
        self._memory = np.empty(0, np.uint8)

    def array_like(self, like: AnyArray) -> AnyArray:
        """Return an array in C order of the same shape and type, once the previous one has been read."""
        for reader in self.readers:
            reader.result()
        if len(self._memory) < like.nbytes:
            self._memory = np.empty(max(like.nbytes, _CHUNK), np.uint8)
        return self._memory[: like.nbytes].view(like.dtype).reshape(like.shape)


def _copy(source: AnyArray, target: AnyArray) -> None:
    """Copy into an array in C order, matrices in strips of columns."""
    if source.ndim != 2:
        target[...] = source
        return
    for start in range(0, source.shape[1], _STRIP):
        target[:, start : start + _STRIP] = source[:, start : start + _STRIP]


def _matches(name: str, array: AnyArray, patterns: tuple[str, ...]) -> bool:
    """Return whether a tensor is to be stored as float16."""
    return array.dtype == np.float32 and any(fnmatchcase(name, p) for p in patterns)


def _to_half(name: str, array: AnyArray) -> NDArray[np.float16]:
    """Round to float16; a finite value that would become infinite is an error."""
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(array)):
        raise ModelError(f"tensor {name} has values beyond 65504, the largest number in float16")
    return rounded


def _bytes_of(array: AnyArray) -> memoryview:
    """Return the bytes of an array that is in C order."""
    return array.reshape(-1).view(np.uint8).data
