"""Archives from the network: checked before they get their name, and read without being unpacked."""

import gzip
import hashlib
import http.client
import io
import os
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pytorch_lightning.utilities import rank_zero_info

from datamodules.errors import DataError

TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20


def new_hash(checksum: str) -> "hashlib._Hash":
    """The hash whose hexadecimal digests are as long as `checksum`: md5 or sha256.

    Raises:
        ValueError: If it is neither.
    """
    lengths = {32: "md5", 64: "sha256"}
    if len(checksum) not in lengths or set(checksum) - set("0123456789abcdef"):
        raise ValueError(f"checksum must be 32 (md5) or 64 (sha256) lower-case hexadecimal digits, got {checksum!r}")
    return hashlib.new(lengths[len(checksum)], usedforsecurity=False)


def verify(path: Path, checksum: str) -> None:
    """Compares a file's checksum.

    Raises:
        DataError: If it differs, or the file cannot be read.
    """
    digest = new_hash(checksum)
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if digest.hexdigest() != checksum:
        raise DataError(
            f"{path} is damaged or another file: its checksum is {digest.hexdigest()}, expected {checksum}\n"
            "Delete it, then download it again or put the right file in its place."
        )


def download(address: str, target: Path, checksum: str, max_bytes: int) -> None:
    """Downloads one file; `target` appears only when it is whole and right.

    Args:
        address: Where it is, http or https.
        target: Where it goes.
        checksum: Its md5 or sha256, hexadecimal.
        max_bytes: Largest size to accept.

    Raises:
        DataError: If it cannot be had, is cut off, too large, or not the one expected.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(f"an address must begin with http:// or https://, got {address!r}")
    digest = new_hash(checksum)
    rank_zero_info(f"downloading {address} to {target}")
    with new_folder(target.parent):
        _download(address, target, checksum, digest, max_bytes)


@contextmanager
def new_folder(folder: Path, advice: str = "") -> Iterator[None]:
    """Makes a folder; where the block fails and nothing is in it, it goes again with all that had to be made for it.

    Args:
        folder: Which; it may be there already.
        advice: A line for who cannot make it.

    Raises:
        DataError: If it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write into {folder}: {error.strerror}\n{advice}".strip()) from None
        yield
    except BaseException:
        # one that was made meanwhile by somebody else, or has something in it, stays with all around it
        with suppress(OSError):
            for each in missing:
                each.rmdir()
        raise


def _download(address: str, target: Path, checksum: str, digest: "hashlib._Hash", max_bytes: int) -> None:
    try:
        handle, name = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
    except OSError as error:
        raise DataError(f"cannot write into {target.parent}: {error.strerror}") from None
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
            length = int(response.headers.get("Content-Length") or 0)
            size = 0
            while chunk := response.read(CHUNK_BYTES):
                size += len(chunk)
                if max(size, length) > max_bytes:
                    raise DataError(f"{address} is larger than the {max_bytes:,} bytes that are accepted")
                digest.update(chunk)
                file.write(chunk)
        if size < length:
            raise DataError(f"{address} broke off after {size:,} of {length:,} bytes")
        if digest.hexdigest() != checksum:
            raise DataError(f"{address} is another file: its checksum is {digest.hexdigest()}, expected {checksum}")
        partial.chmod(0o644)
        partial.replace(target)
    except urllib.error.HTTPError as error:
        # the error holds the connection
        error.close()
        raise DataError(f"cannot download {address}: {error}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DataError(f"cannot download {address}: {getattr(error, 'reason', error)}") from None
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def safe_name(name: str, archive: Path) -> PurePosixPath:
    """The path of an archive's member.

    Raises:
        DataError: If it leads out of the folder the archive stands for.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise DataError(f"{archive} is not to be trusted: it holds {name!r}, which leads out of its folder")
    return path


class _Bounded(io.RawIOBase):
    """A file that may be read up to a number of bytes: a few of compressed ones can stand for any number."""

    def __init__(self, file: gzip.GzipFile, archive: Path, max_bytes: int) -> None:
        self.file = file
        self.archive = archive
        self.max_bytes = max_bytes

    def read(self, size: int = -1) -> bytes:
        if size < 0 or self.file.tell() + size > self.max_bytes + tarfile.RECORDSIZE:
            raise DataError(f"{self.archive} is not to be trusted: it unpacks to more than {self.max_bytes:,} bytes")
        return self.file.read(size)

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        # going forwards means unpacking
        if whence != os.SEEK_SET or place > self.max_bytes + tarfile.RECORDSIZE:
            raise DataError(f"{self.archive} is not to be trusted: it unpacks to more than {self.max_bytes:,} bytes")
        return self.file.seek(place)


def read_tar(archive: Path, wanted: set[str], max_bytes: int, max_unpacked: int) -> dict[str, bytes]:
    """Some members of a tar archive packed by gzip, by their last name; the whole archive is looked through first.

    Args:
        archive: The file.
        wanted: Last names of the members.
        max_bytes: Largest size of one of them to accept.
        max_unpacked: Largest size of the whole archive, unpacked, to accept.

    Raises:
        DataError: If a member is a link or leads out of its folder, is missing, too large, or damaged.
    """
    found: dict[str, bytes] = {}
    try:
        with (
            gzip.open(archive) as unpacked,
            tarfile.open(fileobj=_Bounded(unpacked, archive, max_unpacked), mode="r:") as tar,
        ):
            for member in tar:
                name = safe_name(member.name, archive).name
                if not (member.isfile() or member.isdir()):
                    raise DataError(f"{archive} is not to be trusted: it holds {member.name!r}, a link or device")
                if member.isfile() and name in wanted:
                    if member.size > max_bytes:
                        raise DataError(f"{archive} is not to be trusted: {member.name!r} has {member.size:,} bytes")
                    file = tar.extractfile(member)
                    assert file is not None, "a regular file has contents"
                    found[name] = file.read()
    except DataError:
        raise
    # a damaged archive can make its readers raise nearly anything
    except Exception as error:
        raise DataError(f"cannot read {archive}: {str(error) or type(error).__name__}") from None
    if missing := wanted - found.keys():
        raise DataError(f"{archive} lacks {', '.join(sorted(missing))}")
    return found


def zip_members(archive: Path, max_bytes: int, max_unpacked: int) -> dict[str, zipfile.ZipInfo]:
    """All files of a zip archive by their path.

    Args:
        archive: The file.
        max_bytes: Largest size of a member, unpacked, to accept.
        max_unpacked: Largest size of all of them together.

    Raises:
        DataError: If a member is a link or leads out of its folder, is too large, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
    # a damaged archive can make its reader raise nearly anything
    except Exception as error:
        raise DataError(f"cannot read {archive}: {str(error) or type(error).__name__}") from None
    for member in members:
        safe_name(member.filename, archive)
        # the upper half of the attributes is the mode of Unix, 0 where it was packed on another system
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{archive} is not to be trusted: it holds {member.filename!r}, a link or device")
        if member.file_size > max_bytes:
            raise DataError(f"{archive} is not to be trusted: {member.filename!r} has {member.file_size:,} bytes")
    if sum(member.file_size for member in members) > max_unpacked:
        raise DataError(f"{archive} is not to be trusted: it unpacks to more than {max_unpacked:,} bytes")
    return {member.filename: member for member in members if not member.is_dir()}
