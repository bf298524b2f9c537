"""Takes things away from the process that calls: room on the disk, permission to write, memory."""

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18
CAPABILITY_VERSION = 0x20080522
# CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER: by these the superuser passes by permissions.
PASSING_BY = 0b1110


def _call(name: str, *arguments: object) -> None:
    if getattr(LIBC, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def files_above(limit: int) -> None:
    """No file may grow beyond so many bytes; writing more fails as on a full disk, with another number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def no_privilege() -> None:
    """Permissions hold for the superuser, too."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()
    _call("capget", header, sets)
    # effective, permitted and inheritable ones of the lower half
    for place in range(3):
        sets[place] &= ~PASSING_BY
    _call("capset", header, sets)


def own_mounts() -> None:
    """What is mounted from now on is seen by this process and its children alone."""
    if os.geteuid() == 0:
        _call("unshare", NEW_MOUNTS)
    else:
        user, group = os.geteuid(), os.getegid()
        _call("unshare", NEW_MOUNTS | NEW_USERS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)


def small_disk(folder: Path, size: int) -> None:
    """A file system of so many bytes takes the place of a folder."""
    own_mounts()
    _call("mount", b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode())


def read_only(folder: Path) -> None:
    """A folder's file system can only be read."""
    own_mounts()
    _call("mount", bytes(folder), bytes(folder), None, BIND, None)
    _call("mount", None, bytes(folder), None, BIND | REMOUNT | READ_ONLY, None)


def memory_above(spare: int) -> None:
    """The process may take so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def can_mount() -> bool:
    """Whether this machine lets us mount: some sandboxes do not."""
    code = "from tests.faults.denial import own_mounts; own_mounts()"
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True).returncode == 0
