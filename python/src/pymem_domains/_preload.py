"""The library as a file, and whether a process can have it preloaded."""

import os
import sys

from ._errors import NOT_SERVED, NOT_STARTED, Refusal

#: Names a library to use in place of the installed one.
VARIABLE = "PYMEM_LIBRARY"

#: Words in the names of libraries that put another allocator under the whole process.
_OTHER_ALLOCATORS = (
    "jemalloc",
    "tcmalloc",
    "mimalloc",
    "snmalloc",
    "rpmalloc",
    "hoard",
    "scudo",
    "umem",
    "mesh",
    "asan",
)


def library_path() -> str:
    """The absolute path of the library; a `Refusal` where this installation has none."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        path = os.path.abspath(chosen)
    else:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib", "libpymem_preload.so")
    if not os.path.isfile(path):
        raise Refusal(
            NOT_SERVED,
            f"there is no library at {path}; install the wheel for this platform, or name one in {VARIABLE}",
        )
    return path


def check_platform() -> None:
    """A `Refusal` where the library cannot serve any program."""
    if sys.platform != "linux":
        raise Refusal(NOT_SERVED, f"the library is for Linux, and this is {sys.platform}")
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        libc = None
    if not libc:
        raise Refusal(NOT_SERVED, "the library needs the GNU C library, and this Python runs on another one (musl?)")


def check_interpreter() -> None:
    """A `Refusal` where this interpreter, which is to run the program, cannot be served."""
    if sys.implementation.name != "cpython":
        raise Refusal(NOT_SERVED, f"only CPython can be served, and this is {sys.implementation.name}")
    # Asking the dynamic linker would take ctypes, and a start as long as that. An interpreter that can load extension modules
    # exports its functions to them.
    if not hasattr(sys.modules["_imp"], "create_dynamic"):
        raise Refusal(
            NOT_SERVED,
            f"{sys.executable} loads no extension modules, and so does not export PyMem_SetAllocator, by which allocators are "
            "replaced; use a CPython that does",
        )


def check_library(path: str) -> None:
    """A `Refusal` where the dynamic linker would ignore the library."""
    if _machine(path) != _machine("/proc/self/exe"):
        raise Refusal(NOT_SERVED, f"{path} is not for this machine ({os.uname().machine}); install the wheel for it")
    if any(sign in path for sign in " :$"):
        raise Refusal(
            NOT_SERVED,
            f"LD_PRELOAD cannot name {path}, which has a space, a colon or a dollar sign; "
            f"copy the library to another folder and name it in {VARIABLE}",
        )


def check_program(path: str) -> None:
    """A `Refusal` where the dynamic linker ignores what is preloaded into the program at `path`."""
    status = os.stat(path)
    becomes_other = (status.st_mode & 0o4000 and status.st_uid != os.getuid()) or (
        status.st_mode & 0o2000 and status.st_gid != os.getgid()
    )
    if becomes_other:
        raise Refusal(
            NOT_STARTED,
            f"{path} runs as another user (setuid or setgid), and into such a program nothing can be preloaded; "
            "start the command as that user",
        )


def preloads(library: str, inherited: "str | None") -> str:
    """The value of `LD_PRELOAD`: the library, then what was there already; a `Refusal` beside another allocator."""
    others = []
    for entry in (inherited or "").replace(":", " ").split():
        name = os.path.basename(entry)
        if any(word in name for word in _OTHER_ALLOCATORS):
            raise Refusal(
                NOT_SERVED,
                f"LD_PRELOAD already holds another allocator, {entry}; take it out, since what is measured and "
                "checked would be its blocks",
            )
        if name != os.path.basename(library):
            others.append(entry)
    return ":".join([library, *others])


def _machine(path: str) -> bytes:
    """What an ELF file says about the machine that it is for: class, byte order and instruction set."""
    with open(path, "rb", buffering=0) as file:
        head = file.read(20)
    return head[:6] + head[18:20]
