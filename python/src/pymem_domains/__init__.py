"""CPython's memory domains on other allocators, without compiling anything.

A program is served when it is started through `python -m pymem_domains run` (or with what `pymem-domains env` prints in its
environment). Inside such a process this module tells what serves, and how much of it there is:

>>> import pymem_domains
>>> if pymem_domains.active():
...     before = pymem_domains.stats()
...     kept = [bytes(100) for _ in range(1000)]
...     grown = pymem_domains.stats() - before

Every function but `active`, `library` and `include` raises `NotServedError` in a process that is not served; its text says
how to start one that is.
"""

# Importing `typing` would take longer than all the rest, and `__future__` a file more; type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._errors import NotCountedError, NotProfiledError, NotServedError, PymemError
    from ._library import active, heap_map, include, library, limit, release, row, stats
    from ._profile import Frame, Line, Snapshot, get_object_traceback, profile, snapshot
    from ._prometheus import prometheus
    from ._stats import DomainStats, GuardCoverage, HeapStats, PoolStats, Stats

__version__ = "0.1.0"

__all__ = [
    "DomainStats",
    "Frame",
    "GuardCoverage",
    "HeapStats",
    "Line",
    "NotCountedError",
    "NotProfiledError",
    "NotServedError",
    "PoolStats",
    "PymemError",
    "Snapshot",
    "Stats",
    "active",
    "get_object_traceback",
    "heap_map",
    "include",
    "library",
    "limit",
    "profile",
    "prometheus",
    "release",
    "row",
    "snapshot",
    "stats",
]

# Starting a program must not wait for ctypes and dataclasses: a name's file is imported when the name is first used.
_HOMES = {
    "DomainStats": "_stats",
    "Frame": "_profile",
    "GuardCoverage": "_stats",
    "HeapStats": "_stats",
    "Line": "_profile",
    "NotCountedError": "_errors",
    "NotProfiledError": "_errors",
    "NotServedError": "_errors",
    "PoolStats": "_stats",
    "PymemError": "_errors",
    "Snapshot": "_profile",
    "Stats": "_stats",
    "active": "_library",
    "get_object_traceback": "_profile",
    "heap_map": "_library",
    "include": "_library",
    "library": "_library",
    "limit": "_library",
    "profile": "_profile",
    "prometheus": "_prometheus",
    "release": "_library",
    "row": "_library",
    "snapshot": "_profile",
    "stats": "_library",
}


def __getattr__(name: str) -> "Any":
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
