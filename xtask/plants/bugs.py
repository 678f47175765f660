"""A program for a memory checker that watches the interpreter's allocator: by its argument with one bug, or with `none`."""

import ctypes
import gc
import os
import sys
import threading

bug = sys.argv[1]
api = ctypes.pythonapi
api.PyObject_Malloc.argtypes, api.PyObject_Malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
api.PyObject_Free.argtypes, api.PyObject_Free.restype = [ctypes.c_void_p], None


def churn(seed):
    live = {}
    for turn in range(500):
        size = (turn * 7919 + seed) % 1400
        live[size % 97] = [bytes(size), {str(size): [size] * (size % 60)}, bytearray(size * 40)]
        live[size % 97][2].extend(bytes(size))
    gc.collect()


threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
child = os.fork()
if child == 0:
    churn(9)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0

block = api.PyObject_Malloc(24)
if bug == "overflow":
    ctypes.memset(block + 24, 1, 1)
api.PyObject_Free(block)
if bug == "use after free":
    ctypes.memset(block, 1, 1)
