"""Runs tests of CPython and writes down what serves each child that they start with a `PYTHONMALLOC` of their own.

Arguments: a file that gets one line a child, then names of tests. A line has, separated by tabs: the value of
`PYTHONMALLOC`; the program files that the `malloc` of raw, mem and obj are in; what the library says that it serves; and,
if the child printed a block, `serial` or `no serial`: whether its number was there.

The tests themselves are unchanged: the helper that starts their children puts a prologue before the child's program.
"""

import os
import sys
import unittest

from test.support import script_helper

PROLOGUE = r"""
def tell(path):
    import ctypes, os

    class Record(ctypes.Structure):
        _fields_ = [(name, ctypes.c_void_p) for name in ('ctx', 'malloc', 'calloc', 'realloc', 'free')]

    class Place(ctypes.Structure):
        _fields_ = [('file', ctypes.c_char_p), ('base', ctypes.c_void_p),
                    ('name', ctypes.c_char_p), ('address', ctypes.c_void_p)]

    api = ctypes.pythonapi
    files = []
    for domain in range(3):
        record, place = Record(), Place()
        api.PyMem_GetAllocator(domain, ctypes.byref(record))
        api.dladdr(ctypes.c_void_p(record.malloc), ctypes.byref(place))
        files.append(os.path.basename(place.file.decode()))
    serves = 'nothing'
    if hasattr(api, 'pymem_stats_json'):
        text = ctypes.create_string_buffer(1 << 16)
        api.pymem_stats_json(text, ctypes.c_size_t(len(text)))
        import json
        serves = json.loads(text.value).get('serves', serves)
    with open(path, 'w') as out:
        out.write('\t'.join([','.join(files), serves]))

tell(%r)
del tell
"""

told, names = sys.argv[1], sys.argv[2:]
run_python_until_end = script_helper.run_python_until_end


def run_and_tell(*args, **env_vars):
    name = env_vars.get("PYTHONMALLOC")
    if not name or len(args) != 2 or args[0] != "-c":
        return run_python_until_end(*args, **env_vars)
    of_child = told + ".child"
    result = run_python_until_end("-c", PROLOGUE % of_child + args[1], **env_vars)
    with open(of_child) as child:
        fields = [name, child.read()]
    os.remove(of_child)
    err = result[0].err
    if b"Debug memory block at address p=" in err:
        fields.append("serial" if b"\n    The block was made by call #" in err else "no serial")
    with open(told, "a") as out:
        print(*fields, sep="\t", file=out)
    return result


script_helper.run_python_until_end = run_and_tell
unittest.main(module=None, argv=["watch_children", "-q", *names])
