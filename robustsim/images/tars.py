"""What an uncompressed tar file holds, by the heads of its members."""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

# Zeros follow the last member: two blocks, and what fills up the writer's last record.
_PADDING = 2**20
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class NoEndError(Exception):
    """An archive that stops between two members, as one does that was not written to its end."""


def members(file: BinaryIO, whole: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of each file in a tar file, whose own bytes are `whole`.

    Raises:
        NoEndError: it stops between two of them.
        ReadError: of `tarfile`: it is compressed, or damaged; that has many other errors for it.
    """
    head = file.read(6)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise tarfile.ReadError(f"it is compressed ({kind}), and only uncompressed tar files are read: unpack it")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            if member.size < 0:
                raise tarfile.ReadError(f"{member.name[:80]!r} has {member.size} bytes")
            if not member.isreg() or member.issparse():
                continue
            if member.offset_data + member.size > whole:
                raise tarfile.ReadError(f"the file ends at byte {whole:,}, within {member.name[:80]!r}")
            yield member.name, member.offset_data, member.size
        # A damaged head, too, is the end to tarfile.
        file.seek(tar.offset)
        rest = file.read(_PADDING + 1)
        if not rest:
            raise NoEndError("it has no end mark, as if it had been cut off between two members")
        if len(rest) > _PADDING or rest.strip(b"\0"):
            raise tarfile.ReadError(f"no member begins at byte {tar.offset:,} of {whole:,}")
