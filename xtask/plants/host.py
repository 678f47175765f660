"""What `cargo xtask hosts` has an interpreter do: the task that its first argument names, most of them with a bug."""

import ctypes
import json
import os
import sys
import threading

api = ctypes.pythonapi
# Calls by way of this one let the GIL go.
without_gil = ctypes.CDLL(None)
api.PyMem_Malloc.restype = ctypes.c_void_p


def make(size):
    return api.PyMem_Malloc(ctypes.c_size_t(size))


def give_back(block):
    api.PyMem_Free(ctypes.c_void_p(block))


def byte(address):
    return ctypes.c_ubyte.from_address(address)


def subinterpreters():
    try:
        import _interpreters as module
    except ImportError:
        import _xxsubinterpreters as module
    return module


def work():
    data = {n: [str(n) * 3, bytes(n), bytearray(n)] for n in range(2000)}
    assert all(len(text) >= 3 for text, _, _ in data.values())


def json_threads_fork():
    assert json.loads(json.dumps({"a": [1, 2]})) == {"a": [1, 2]}
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def overflow():
    block = make(64)
    byte(block + 64).value = 0x78
    give_back(block)


def underflow():
    block = make(64)
    byte(block - 1).value = 0x78
    give_back(block)


def double_free():
    block = make(64)
    give_back(block)
    give_back(block)


def write_after_free():
    block = make(64)
    give_back(block)
    byte(block + 3).value = 0x78


def read_after_free():
    for _ in range(200_000):
        block = make(64)
        give_back(block)
        byte(block + 3).value


def wrong_api():
    api.PyObject_Free(ctypes.c_void_p(make(64)))


def invalid_free():
    give_back(make(64) + 16)


def no_gil():
    without_gil.PyMem_Malloc(ctypes.c_size_t(8))


def no_gil_after_subinterpreter():
    module = subinterpreters()
    module.destroy(module.create())
    no_gil()


def leak():
    make(12345)


def rounds():
    """Makes, uses from two threads and ends as many subinterpreters as the second argument says."""
    module = subinterpreters()

    def use(interpreter):
        module.run_string(interpreter, "data = [str(n) * 3 for n in range(200)]; del data")
        return [str(n) * 3 for n in range(200)]

    for _ in range(int(sys.argv[2])):
        interpreter = module.create()
        thread = threading.Thread(target=use, args=(interpreter,))
        thread.start()
        work()
        thread.join()
        use(interpreter)
        module.destroy(interpreter)


globals()[sys.argv[1]]()
print("done")
