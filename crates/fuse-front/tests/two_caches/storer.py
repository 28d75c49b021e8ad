"""Stores stamps into a file through a shared mapping, loads them back, and tells what it saw.

Usage: storer.py PATH FILE SIZE OWNER OWNERS BLOCK SEED

A process of its own: one that serves a file system must not fault on its own mount. The bytes go
in by read(2) and out by write(2) with the mapping as their buffer, so that a page past the end of
the file is EFAULT instead of SIGBUS. Prints "ready" once the file is mapped, goes on until its
standard input ends, then prints records of 40 bytes: what, sector | units << 32, and three times or
values; see storer.rs.
"""

import mmap
import os
import random
import struct
import sys
import time

SECTOR, UNIT, MAGIC = 512, 16, 0x5EED << 48
STORED, FAILED, SEEN, MISPLACED = range(4)

path = sys.argv[1]
file, size, owner, owners, block, seed = map(int, sys.argv[2:8])
rng = random.Random(seed)
target = os.open(path, os.O_RDWR)
mapping = mmap.mmap(target, size)
view = memoryview(mapping)
source, sink = os.memfd_create("source"), os.memfd_create("sink")
mine = [s for s in range(size // SECTOR) if s // block % owners == owner]
tags = {s: [MAGIC | file << 32 | (s * SECTOR // UNIT + u) for u in range(SECTOR // UNIT)] for s in mine}
clock = time.monotonic_ns
pack, unpack = struct.Struct("<64Q").pack, struct.Struct("<64Q").unpack
zeros = bytes(SECTOR)
last = {}
records = []


def note(kind, sector, units, a, b, c):
    records.append((kind, sector | units << 32, a, b, c))


def load(sector):
    at = sector * SECTOR
    begin = clock()
    try:
        whole = os.pwrite(sink, view[at : at + SECTOR], 0) == SECTOR
    except OSError:
        return
    data = os.pread(sink, SECTOR, 0)
    end = clock()
    if not whole:
        return
    if data == zeros:
        return note(SEEN, sector, 32 << 8, begin, end, 0)
    if data == last.get(sector, (None, 0))[0]:
        return note(SEEN, sector, 32 << 8, begin, end, last[sector][1])
    words = unpack(data)
    runs, run = [], None
    for unit in range(SECTOR // UNIT):
        tag, value = words[2 * unit], words[2 * unit + 1]
        if tag not in (0, tags[sector][unit]):
            note(MISPLACED, sector, unit, begin, end, tag)
        if (tag == 0) != (value == 0) or tag not in (0, tags[sector][unit]):
            run = None  # half a stamp: the load ran beside a store or a punch
        elif run is not None and run[1] == value:
            run[2] = unit + 1
        else:
            run = [unit, value, unit + 1]
            runs.append(run)
    for first, value, to in runs:
        note(SEEN, sector, first | to << 8, begin, end, value)


print("ready", flush=True)
os.set_blocking(0, False)
turns = 0
while True:
    turns += 1
    if turns % 16 == 0:
        try:
            if os.read(0, 1) == b"":
                break
        except BlockingIOError:
            pass
    sector = rng.choice(mine)
    at = sector * SECTOR
    load(sector)
    begin = clock()
    while begin <= last.get(sector, (None, 0))[1]:
        begin = clock()
    words = [begin] * 64
    words[0::2] = tags[sector]
    data = pack(*words)
    os.pwrite(source, data, 0)
    try:
        whole = os.preadv(source, [view[at : at + SECTOR]], 0) == SECTOR
    except OSError:
        whole = False
    end = clock()
    last[sector] = (data, begin)
    note(STORED if whole else FAILED, sector, 0, begin, end, 0)
    load(sector)
    if turns % 8 == 0:
        time.sleep(0.0005)  # the others need the processors too
    if rng.random() < 1 / 64:
        page = at // mmap.PAGESIZE * mmap.PAGESIZE
        mapping.flush(page, mmap.PAGESIZE)

record = struct.Struct("<5Q")
sys.stdout.buffer.write(b"".join(record.pack(*r) for r in records))
sys.stdout.buffer.flush()
