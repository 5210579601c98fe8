"""Has the kernel write the memory of a process out to swap: page_out.py PID"""

import ctypes
import os
import sys

PROCESS_MADVISE, MADV_PAGEOUT = 440, 21
LEAST = 1 << 20


class Range(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


pid = int(sys.argv[1])
process = os.pidfd_open(pid)
call = ctypes.CDLL(None, use_errno=True).syscall
call.restype = ctypes.c_long
with open(f"/proc/{pid}/maps") as maps:
    for line in maps:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if line.split()[1].startswith("rw") and end - start >= LEAST:
            part = Range(start, end - start)
            if call(PROCESS_MADVISE, process, ctypes.byref(part), 1, MADV_PAGEOUT, 0) < 0:
                sys.exit(f"process_madvise: {os.strerror(ctypes.get_errno())}")
