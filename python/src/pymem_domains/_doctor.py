"""What runs here, whether it can be served, and what to change."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from pathlib import Path

from . import __version__
from ._errors import NotServedError, Refusal
from ._library import functions
from ._request import Request
from ._run import served
from ._stats import Stats


def diagnosis() -> tuple[list[str], int]:
    """The lines, and the status: 0, or that with which `run` would refuse."""
    advice: list[str] = []
    status = 0
    lines = [f"python       {_python()}", f"platform     {platform.machine()}, {_libc()}, Linux {platform.release()}"]
    try:
        variables = served(Request(), dict(os.environ))
    except Refusal as refusal:
        status = refusal.status
        lines.append(f"library      {refusal}")
        advice.append(str(refusal))
    else:
        lines.append(f"library      {variables['LD_PRELOAD'].partition(':')[0]} ({__version__})")
    try:
        stats = Stats.from_report(functions().report())
    except NotServedError as error:
        lines.append(f"served       no: {error}")
    else:
        lines.append(f"served       {str(stats).splitlines()[0]}")
    named = {name: os.environ.get(name) for name in _VARIABLES}
    lines.append(
        "environment  " + (", ".join(f"{name}={value}" for name, value in named.items() if value) or "no variable of ours")
    )
    lines.append(f"huge pages   {_huge_pages(advice)}")
    lines.append(f"limits       {_limits(advice)}")
    lines.append(f"mappings     {_mappings(advice)}")
    if sys.flags.dev_mode:
        advice.append("dev mode (-X dev, PYTHONDEVMODE) keeps the interpreter's own hooks: leave it out to be served")
    if status == 0 and not advice:
        advice.append("nothing")
    lines.extend(f"to change    {sentence}" for sentence in advice)
    return lines, status


_VARIABLES = (
    "PYTHONMALLOC",
    "PYMEM_MALLOC",
    "PYMEM_DEBUG",
    "PYTHONDEVMODE",
    "LD_PRELOAD",
    "PYMEM_LIBRARY",
    "MALLOC_ARENA_MAX",
)


def _python() -> str:
    threads = "without the GIL" if sysconfig.get_config_var("Py_GIL_DISABLED") else "with the GIL"
    return f"{platform.python_implementation()} {platform.python_version()} {threads} ({sys.executable})"


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "another C library than GNU's"
    except (OSError, ValueError):
        return "another C library than GNU's"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _huge_pages(advice: list[str]) -> str:
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    if text is None:
        return "this kernel has none"
    mode = text.partition("[")[2].partition("]")[0] or text
    if mode == "always":
        advice.append(
            "transparent huge pages are `always` on: resident memory may be larger than what is used; `madvise` in "
            "/sys/kernel/mm/transparent_hugepage/enabled leaves the choice to programs"
        )
    return f"transparent: {mode}; page size {os.sysconf('SC_PAGE_SIZE')}"


def _limits(advice: list[str]) -> str:
    import resource

    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    parts = ["address space " + ("unlimited" if space == resource.RLIM_INFINITY else f"{space >> 20} MiB")]
    if space != resource.RLIM_INFINITY:
        advice.append("an address space limit (ulimit -v) counts what is reserved; limit the cgroup, or use `run --limit`")
    cgroup = _read("/sys/fs/cgroup/memory.max") or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    if cgroup is not None:
        # The first version of cgroups has a number near 2**63 for none.
        unlimited = cgroup == "max" or int(cgroup) >= 1 << 60
        parts.append("cgroup " + ("unlimited" if unlimited else f"{int(cgroup) >> 20} MiB"))
    return ", ".join(parts)


def _mappings(advice: list[str]) -> str:
    text = _read("/proc/sys/vm/max_map_count")
    overcommit = _read("/proc/sys/vm/overcommit_memory")
    if overcommit == "2":
        advice.append("strict overcommit (vm.overcommit_memory=2) counts reserved memory as used: prefer a pymalloc row")
    return f"at most {text or 'an unknown number'}, overcommit {overcommit or 'unknown'}"
