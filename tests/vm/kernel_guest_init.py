# SPDX-License-Identifier: Apache-2.0
"""PID 1 of the guest of `kernel_guest`: mounts volumes and says what the kernel sees on them.

Loads /modules/*.ko, then mounts each volume that /jobs.json names, read-only unless it is to grow,
and writes lines of JSON to the serial port: one for every name that a directory lists, each looked
up; then one with what the kernel had to say.  Ends with the machine off.  Uses the standard library
only.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import stat
import struct
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
SYS_INIT_MODULE = 175  # Source: linux arch/x86/entry/syscalls/syscall_64.tbl
MS_RDONLY = 1
POWER_OFF = 0x4321FEDC  # Source: linux include/uapi/linux/reboot.h
EXT4_IOC_RESIZE_FS = 0x40086610  # Source: linux fs/ext4/ext4.h; takes a number of blocks
FAT_IOCTL_GET_ATTRIBUTES = 0x80047210  # Source: linux include/uapi/linux/msdos_fs.h
ERROR_LEVEL = 5  # what the kernel says at this level and above it: notices


def main() -> None:
    """Do every job, then power off."""
    for kind, target in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")):
        mount(kind, kind, target)
    out = os.open("/dev/ttyS0", os.O_WRONLY)
    try:
        for name in sorted(os.listdir("/modules")):
            load(name)
        with open("/jobs.json", encoding="utf-8") as file:
            jobs = json.load(file)
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        messages_of(log)
        for number, job in enumerate(jobs):
            do(out, number, job)
            say(out, {"job": number, "messages": messages_of(log)})
    except Exception as error:  # a PID 1 that ends is a kernel panic, which says less
        say(out, {"failed": f"{type(error).__name__}: {error}"})
    say(out, {"end": True})
    libc.reboot(ctypes.c_int(POWER_OFF))


def do(out: int, number: int, job: dict[str, Any]) -> None:
    """Mount one volume and say everything of it."""
    options = job["options"].encode()
    try:
        flags = 0 if job["grown_blocks"] else MS_RDONLY
        mount(job["device"], job["filesystem"], "/tmp", flags, options)
        if job["grown_blocks"]:
            grow("/tmp", job["grown_blocks"])
    except OSError as error:
        say(out, {"job": number, "error": errno.errorcode.get(error.errno or 0, "?")})
        return
    pending = [b""]
    while pending:
        path = pending.pop()
        seen = facts_of(b"/tmp/" + path, job["xattrs"])
        say(out, {"job": number, "path": base64.b64encode(path).decode(), **seen})
        if seen.get("kind") == "directory" and "error" not in seen:
            names = sorted(os.listdir(b"/tmp/" + path), reverse=True)
            pending += [path + b"/" + name if path else name for name in names]
    check(libc.umount2(b"/tmp", 0))


def grow(directory: str, blocks: int) -> None:
    """Have a mounted ext volume grow, and write a file on it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
    finally:
        os.close(descriptor)
    with open(f"{directory}/file", "wb") as file:
        file.write(b"x" * (1 << 20))


def facts_of(path: bytes, wanted: list[str]) -> dict[str, Any]:
    """Return what the kernel says of one name; of one it cannot look up, the error."""
    seen: dict[str, Any] = {}
    try:
        status = os.lstat(path)
        kind = kind_of(status.st_mode)
        seen.update(
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            owner=[status.st_uid, status.st_gid],
            size=status.st_size,
            links=status.st_nlink,
            inode=status.st_ino,
            blocks=status.st_blocks,
            times=[status.st_mtime_ns, status.st_atime_ns, status.st_ctime_ns],
            device=[os.major(status.st_rdev), os.minor(status.st_rdev)],
            xattrs=xattrs_of(path, wanted),
        )
        if kind == "symlink":
            seen["target"] = base64.b64encode(os.readlink(path)).decode()
        elif kind in ("file", "directory"):
            seen.update(opened(path, kind))
    except OSError as error:
        seen["error"] = errno.errorcode.get(error.errno or 0, str(error))
    return seen


def opened(path: bytes, kind: str) -> dict[str, Any]:
    """Return what takes an open file: FAT attributes, and a file's digest."""
    seen: dict[str, Any] = {}
    descriptor = os.open(path, os.O_RDONLY)
    try:
        attributes = ctypes.c_uint32()
        try:
            fcntl.ioctl(descriptor, FAT_IOCTL_GET_ATTRIBUTES, attributes)
            seen["attributes"] = attributes.value
        except OSError:
            seen["attributes"] = None  # another filesystem
        if kind == "directory":
            os.listdir(descriptor)
        else:
            digest = hashlib.sha256()
            while data := os.read(descriptor, 1 << 20):
                digest.update(data)
            seen["sha256"] = digest.hexdigest()
    finally:
        os.close(descriptor)
    return seen


def xattrs_of(path: bytes, wanted: list[str]) -> dict[str, str]:
    """Return the extended attributes that are listed and those of the wanted ones there are."""
    found = {}
    listed = list_xattrs(path)
    for name in (*listed, *wanted):
        value = get_xattr(path, name)
        if value is not None:
            found[name] = base64.b64encode(value).decode()
    return found


def list_xattrs(path: bytes) -> list[str]:
    """Return the names of extended attributes; none where there can be none."""
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def get_xattr(path: bytes, name: str) -> bytes | None:
    """Return an extended attribute's value, None if there is no such.

    The size is asked for first: ntfs3 says ENODATA of a value that is larger than the buffer.
    """
    size = libc.lgetxattr(path, name.encode(), None, 0)
    buffer = ctypes.create_string_buffer(max(size, 1))
    if size > 0:
        size = libc.lgetxattr(path, name.encode(), buffer, size)
    if size < 0:
        number = ctypes.get_errno()
        # ntfs3 says ENOENT of a descriptor that $Secure does not hold.
        if number in (errno.ENODATA, errno.ENOTSUP, errno.ENOENT):
            return None
        raise OSError(number, os.strerror(number))
    return buffer.raw[:size]


def kind_of(mode: int) -> str:
    """Return the kind of an object by its mode."""
    kinds = {
        stat.S_IFDIR: "directory",
        stat.S_IFREG: "file",
        stat.S_IFLNK: "symlink",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
    }
    return kinds[stat.S_IFMT(mode)]


def messages_of(log: int) -> list[str]:
    """Return what the kernel has said since the last time, of some weight."""
    said: list[str] = []
    while True:
        try:
            record = os.read(log, 8192).decode("utf-8", "replace")
        except BlockingIOError:
            return said
        except BrokenPipeError:
            continue  # the oldest were overwritten
        head, _, text = record.partition(";")
        if int(head.split(",")[0]) & 7 <= ERROR_LEVEL:
            said.append(text.split("\n")[0])


def load(name: str) -> None:
    """Load a module."""
    with open(f"/modules/{name}", "rb") as file:
        image = file.read()
    result = libc.syscall(
        ctypes.c_long(SYS_INIT_MODULE),
        ctypes.c_char_p(image),
        ctypes.c_ulong(len(image)),
        ctypes.c_char_p(b""),
    )
    if result and ctypes.get_errno() != errno.EEXIST:
        check(result)


def mount(source: str, kind: str, target: str, flags: int = 0, data: bytes = b"") -> None:
    """Mount a filesystem."""
    check(
        libc.mount(
            source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data or None
        )
    )


def check(result: int) -> None:
    """Turn a C result into an exception."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def say(out: int, record: dict[str, Any]) -> None:
    """Write a line of JSON."""
    data = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    while data:
        data = data[os.write(out, data) :]


if __name__ == "__main__":
    main()
