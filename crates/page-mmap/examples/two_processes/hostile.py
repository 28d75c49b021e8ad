"""What no client of ours and no daemon of ours does, for the experiment beside this file.

usage: hostile.py ROLE [ARGUMENT...], standard input a socket that keeps messages apart: two 64-bit
words each, and descriptors.

stuck MOUNT plain|fixed  registers views of the memory that it is handed, hands over its userfaultfd,
                         and then holds its map lock: mmap(2) of a file that is dirty in the kernel's
                         cache, which the file's server never takes back. `fixed` maps it over a part
                         of the shared view.
call NAME                does one ioctl on a userfaultfd of another process, at an address of it; or one
                         call that takes the memory's own locks (punch, write), at an offset
hold MOUNT ADVICE        writes to the memory from a page that its file system never delivers; ADVICE
                         is the number of one of madvise(2): 0 none, 1 no readahead
pin MOUNT                a direct read into the memory, which its file system answers late
backed                   maps the memory through a file of a FUSE mount that it is handed
"""

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import sys

PAGE = 4096
PAGES = 512
USERFAULTFD = 323  # x86-64
UFFD_USER_MODE_ONLY = 1
FEATURES = 1 << 0 | 1 << 5 | 1 << 10 | 1 << 12 | 1 << 14
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
MISSING_WP_MINOR, MISSING_MINOR = 7, 5
IOCTLS = {
    "continue": (0xC020AA07, 32),
    "poison": (0xC020AA08, 32),
    "write-protect": (0xC018AA06, 24),
    "wake": (0x8010AA02, 16),
}
MAP_FIXED = 0x10

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.pread.argtypes = libc.pwrite.argtypes

wire = socket.socket(fileno=os.dup(0))


def say(what, number, fds=()):
    socket.send_fds(wire, [struct.pack("QQ", what, number)], list(fds))


def hear():
    message, fds, _, _ = socket.recv_fds(wire, 16, 2)
    if not message:
        sys.exit(0)
    return struct.unpack("QQ", message), fds


def map_file(fd, length, access, flags, address=None):
    at = libc.mmap(address, length, access, flags, fd, 0)
    if at in (None, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return at


def userfault(ranges):
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("QQQ", 0xAA, FEATURES, 0)))
    for at, mode in ranges:
        fcntl.ioctl(fd, UFFDIO_REGISTER, bytearray(struct.pack("QQQQ", at, PAGES * PAGE, mode, 0)))
    return fd


READ, BOTH = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


def stuck(mount, where):
    _, (memory,) = hear()
    shared = map_file(memory, PAGES * PAGE, BOTH, mmap.MAP_SHARED)
    private = map_file(memory, PAGES * PAGE, BOTH, mmap.MAP_PRIVATE)
    # Half of the shared view is mapped before: what a punch has to take away.
    for page in range(PAGES // 2):
        ctypes.string_at(shared + page * PAGE, 1)
    fd = userfault([(shared, MISSING_WP_MINOR), (private, MISSING_MINOR)])
    dirty = os.open(mount + "/file", os.O_RDWR)
    direct = os.open(mount + "/file", os.O_RDONLY)
    ctypes.memset(map_file(dirty, PAGE, BOTH, mmap.MAP_SHARED), 0x44, 1)
    say(1, shared, [fd])
    say(2, private)
    hear()
    over = shared + (PAGES - 1) * PAGE if where == "fixed" else None
    fixed = MAP_FIXED if where == "fixed" else 0
    map_file(direct, PAGE, READ, mmap.MAP_PRIVATE | fixed, over)
    say(3, 0)
    hear()


def call(name):
    (_, address), (fd,) = hear()
    say(1, 0)
    if name == "punch":
        return say(0, ctypes.get_errno() if libc.fallocate(fd, 3, address, PAGE) else 0)
    if name == "write":
        return say(0, 0 if os.pwrite(fd, b"w" * PAGE, address) == PAGE else 5)
    number, size = IOCTLS[name]
    words = [address, PAGE] + [0] * (size // 8 - 2)
    if name == "write-protect":
        words[2] = 1
    try:
        fcntl.ioctl(fd, number, bytearray(struct.pack("Q" * len(words), *words)))
        say(0, 0)
    except OSError as error:
        say(0, error.errno)


def hold(mount, advice):
    _, (memory,) = hear()
    source = map_file(os.open(mount + "/never", os.O_RDONLY), PAGE, READ, mmap.MAP_SHARED)
    libc.madvise(ctypes.c_void_p(source), ctypes.c_size_t(PAGE), int(advice))
    say(1, 0)
    count = libc.pwrite(memory, source, 64, 0)
    say(2, count if count >= 0 else ctypes.get_errno())
    hear()


def pin(mount):
    _, (memory,) = hear()
    view = map_file(memory, PAGE, BOTH, mmap.MAP_SHARED)
    ctypes.memset(view, 0x11, PAGE)
    direct = os.open(mount + "/late", os.O_RDONLY)
    say(1, 0)
    count = libc.pread(direct, view, PAGE, 0)
    say(2, ctypes.string_at(view, 1)[0] if count == PAGE else 0x100)
    hear()


def backed():
    _, (fd,) = hear()
    view = map_file(fd, PAGES * PAGE, BOTH, mmap.MAP_SHARED)
    ctypes.string_at(view + PAGE, 1)
    say(1, ctypes.string_at(view, 1)[0])
    ctypes.memset(view, 0x66, 1)
    hear()
    say(2, ctypes.string_at(view + PAGE, 1)[0])
    try:
        userfault([(view, MISSING_WP_MINOR)])
        say(3, 0)
    except OSError as error:
        say(3, error.errno)
    code = 0
    try:
        os.pwrite(fd, b"w" * 8, 0)
    except OSError as error:
        code = error.errno
    say(4, code)
    try:
        os.close(os.open(f"/proc/self/map_files/{view:x}-{view + PAGES * PAGE:x}", os.O_RDWR))
        say(5, 0)
    except OSError as error:
        say(5, error.errno)
    hear()


{"stuck": stuck, "call": call, "hold": hold, "pin": pin, "backed": backed}[sys.argv[1]](*sys.argv[2:])
