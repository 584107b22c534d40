"""Read the zip container of a PyTorch file by memory mapping, and verify the CRC of its members.

PyTorch writes its members uncompressed, so that each is a plain range of the file. Only such archives are
read; compressed, encrypted or overlapping members and duplicate names are refused, which rules out zip bombs.
"""

import mmap
import struct
import zipfile
import zlib
from pathlib import Path

from specjax.errors import ModelError

_LOCAL_HEADER = struct.Struct(
    "<4s2B4HL2L2H"
)  # 30 bytes; the last two fields are the lengths of the name and the extra field
_MAX_MEMBERS = 200_000
_ENCRYPTED = 0x1
_LEGACY_STARTS = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02ctorch", b"\x80\x02}")


class Archive:
    """A zip file of uncompressed members, by their names without the top-level folder.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        """Map the file and read its central directory.

        Raises:
            ModelError: The file is not a zip file, or one that PyTorch would not write.
        """
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise ModelError(
                f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}"
            ) from None
        self._members = self._read_directory()
        self._checked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> list[str]:
        """Names of the members, in the order of the central directory."""
        return list(self._members)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return len(self._map)

    def member_size(self, name: str) -> int:
        """Return the size of a member in bytes.

        Raises:
            ModelError: There is no such member.
        """
        if name not in self._members:
            raise ModelError(f"{self.path} is damaged: it has no member {name!r}")
        return self._members[name].file_size

    def read(self, name: str) -> memoryview:
        """Return a read-only view of a member, whose CRC is verified on the first call.

        Raises:
            ModelError: There is no such member, or it is damaged.
        """
        size = self.member_size(name)
        info = self._members[name]
        start = self._data_start(info)
        data = memoryview(self._map)[start : start + size]
        if len(data) != size:
            raise ModelError(f"{self.path} is truncated in member {name!r}")
        if name not in self._checked:
            if zlib.crc32(data) != info.CRC:
                raise ModelError(f"{self.path} is damaged in member {name!r}: its CRC-32 differs")
            self._checked.add(name)
        return data

    def _read_directory(self) -> dict[str, zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except Exception as error:  # zipfile raises many types of errors for invalid files
            raise ModelError(self._why_not_zip(error)) from None
        if len(infos) > _MAX_MEMBERS:
            raise ModelError(f"{self.path} has {len(infos)} members, too many for a PyTorch file")
        for info in infos:
            self._check_info(info)
        self._check_overlap(infos)
        members = {info.filename.partition("/")[2]: info for info in infos}
        folders = {info.filename.partition("/")[0] for info in infos}
        if len(members) != len(infos) or len(folders) != 1:
            raise ModelError(
                f"{self.path} is not a PyTorch file: it has duplicate members or several top-level folders"
            )
        return members

    def _why_not_zip(self, error: Exception) -> str:
        start = self._map[:32]
        if start.startswith(_LEGACY_STARTS) or b"ustar" in self._map[257:263]:
            return f"{self.path} has the legacy format of PyTorch before 1.6: save it again with torch"
        if start.startswith(b"PK"):
            return f"{self.path} is a damaged or truncated PyTorch file: {str(error) or type(error).__name__}"
        return f"{self.path} is not a PyTorch file"

    def _check_info(self, info: zipfile.ZipInfo) -> None:
        parts = info.filename.split("/")
        if len(parts) < 2 or any(part in ("", ".", "..") for part in parts) or "\\" in info.filename:
            raise ModelError(f"{self.path} is not a PyTorch file: it has a member named {info.filename!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ModelError(f"{self.path} is not a PyTorch file: its member {info.filename!r} is compressed")
        if info.flag_bits & _ENCRYPTED:
            raise ModelError(f"{self.path} is not a PyTorch file: its member {info.filename!r} is encrypted")

    def _check_overlap(self, infos: list[zipfile.ZipInfo]) -> None:
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.header_offset < end:
                raise ModelError(f"{self.path} is damaged: its member {info.filename!r} overlaps another")
            end = info.header_offset + _LOCAL_HEADER.size + info.file_size
        if end > self.size:
            raise ModelError(f"{self.path} is truncated")

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        header = self._map[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
        if len(header) != _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise ModelError(f"{self.path} is damaged before member {info.filename!r}")
        lengths: tuple[int, ...] = _LOCAL_HEADER.unpack(header)[-2:]
        return info.header_offset + _LOCAL_HEADER.size + sum(lengths)
