"""The module, inside of a process that is served and of one that is not."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path

import pytest
from conftest import Run

import pymem_domains

HAS_GIL = not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled()


def inside(command: Run, code: str, *options: str) -> str:
    """What `code` prints in a process that is served."""
    result = command("run", *options, "-c", f"import pymem_domains as p\n{code}")
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "name",
    [
        "pymem_domains",
        "pymem_domains._library",
        "pymem_domains._profile",
        "pymem_domains._prometheus",
        "pymem_domains._request",
    ],
)
def test_the_examples_run(command: Run, name: str, tmp_path: Path) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    code = f"import doctest, importlib; print(doctest.testmod(importlib.import_module({name!r})).failed)"
    # One of them writes a file.
    result = command("run", "-c", code, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_nothing_is_served_here() -> None:
    assert not pymem_domains.active()
    for call in (pymem_domains.row, pymem_domains.stats, pymem_domains.release, pymem_domains.prometheus):
        with pytest.raises(pymem_domains.NotServedError, match="python -m pymem_domains run"):
            call()


def test_the_files_are_there() -> None:
    assert Path(pymem_domains.library()).is_file()
    assert "pymem_stats_json" in Path(pymem_domains.include(), "pymem.h").read_text()


def test_every_name_is_there() -> None:
    assert {name for name in pymem_domains.__all__ if getattr(pymem_domains, name) is None} == set()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pymem_domains.nothing  # noqa: B018


def test_stats_can_be_subtracted(command: Run) -> None:
    code = "a = p.stats(); kept = [bytes(1000) for _ in range(1000)]; grown = p.stats() - a\n"
    out = inside(
        command, code + "print(grown.domain('obj').live_bytes, grown.row, grown.domain('raw').backend)", "--limit", "0"
    )
    grown, row, backend = out.split(maxsplit=2)
    assert 1_033_000 <= int(grown) < 1_200_000
    assert (row, backend) in (("pymalloc", "malloc\n"), ("mimalloc", "malloc\n"))
    if HAS_GIL:
        out = inside(command, code + "print(grown.pools.blocks, grown.domain('obj').live_bytes)")
        blocks, live = out.split()
        assert int(blocks) >= 1000
        assert live == "None"
        assert int(inside(command, code + "print(grown.heaps.blocks)", "--malloc", "mimalloc")) >= 1000


def test_what_guard_pages_cover_is_told(command: Run) -> None:
    if not HAS_GIL:
        pytest.skip("without the GIL objects have no guard pages")
    code = "kept = [bytes(40) for _ in range(100_000)]; guard = p.stats().guard; "
    out = inside(command, code + "print(guard.slots >= 4096, guard.guarded > 0)", "--debug", "guard=1/50")
    assert out == "True True\n"
    assert inside(command, code + "print(guard)") == "None\n"


def test_memory_is_given_back(command: Run) -> None:
    if not HAS_GIL:
        pytest.skip("without the GIL mem and obj are the interpreter's own")
    out = inside(command, "x = [bytes(300) for _ in range(100_000)]; del x; print(p.release())")
    assert int(out) > 100_000
    with pytest.raises(ValueError, match="choose one of arenas, pools, pages"):
        pymem_domains.release("everything")


def test_the_limit_is_exact(command: Run) -> None:
    code = """
import ctypes
from pymem_domains import _library
mem = ctypes.pythonapi.PyMem_Malloc
mem.argtypes, mem.restype = (ctypes.c_size_t,), ctypes.c_void_p
counts = _library.Counts()
counts.take()
spare = 1_000_000
p.limit(counts.bytes + 100_000_000)
counts.take()
room = counts.bytes
big = mem(100_000_000 - spare)
print(big is not None, mem(2 * spare), mem(spare // 2) is not None)
p.limit(None)
print(mem(200_000_000) is not None)
"""
    assert inside(command, code, "--limit", "0") == "True None True\nTrue\n"
    result = command("run", "--limit", "100 MB", "-c", "x = bytes(90_000_000 - 33); bytearray(20_000_000)")
    assert result.stderr.splitlines()[-1] == "MemoryError"
    assert command("run", "--limit", "120 MB", "-c", "x = bytes(90_000_000); bytearray(20_000_000)").stderr == ""


@pytest.mark.parametrize("maximum", [0, 2**64 - 1, 2**64 + 10])
def test_a_limit_that_is_none(maximum: int) -> None:
    with pytest.raises(ValueError, match="give"):
        pymem_domains.limit(maximum)


def test_what_is_not_counted_has_no_limit(command: Run) -> None:
    code = "try: p.limit(10**9)\nexcept p.NotCountedError as error: print(error)"
    assert "run --limit 0" in inside(command, code)
    with pytest.raises(ValueError, match="positive number"):
        pymem_domains.limit(0)


def test_a_picture_on_request(command: Run, tmp_path: Path) -> None:
    if not HAS_GIL:
        pytest.skip("without the GIL mem and obj are the interpreter's own")
    asked, last = tmp_path / "asked.svg", tmp_path / "last.svg"
    inside(command, f"p.heap_map({str(asked)!r})", "--heap-map", str(last))
    assert asked.read_text().startswith("<svg")
    assert last.read_text().startswith("<svg")
    code = f"try: p.heap_map({str(tmp_path / 'no' / 'x.svg')!r})\nexcept OSError as error: print(error)"
    assert "cannot be written" in inside(command, code, "--heap-map", str(last))
    code = "try: p.heap_map('x')\nexcept p.NotCountedError as error: print(error)"
    for row in ("malloc", "mimalloc"):
        assert f"the heap of {row} cannot be drawn in this process" in inside(command, code, "--malloc", row)


@pytest.mark.parametrize("options", [(), ("--stats",), ("--debug", "strict")])
def test_a_picture_that_nobody_has_announced(command: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    if not HAS_GIL:
        pytest.skip("without the GIL mem and obj are the interpreter's own")
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    code = f"p.heap_map({str(first)!r}); kept = [bytes(300) for _ in range(10_100)]; p.heap_map({str(second)!r})"
    assert command("run", *options, "-c", f"import pymem_domains as p; {code}").returncode == 0
    blocks = []
    for path in (first, second):
        title, totals = command("map", str(path)).stdout.splitlines()
        assert title.startswith("pymalloc")
        blocks.append(int(totals.split("; ")[1].split()[0]))
    # The interpreter frees a few of its own meanwhile.
    assert 10_000 <= blocks[1] - blocks[0] < 12_000


def test_a_scrape(command: Run) -> None:
    text = inside(command, "print(p.prometheus(), end='')", "--limit", "0")
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = int(value)
    assert values['pymem_live_bytes{domain="obj"}'] > 100_000
    assert values['pymem_calls_total{domain="mem",call="malloc"}'] > 100
    assert values["pymem_resident_bytes"] > 1_000_000
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def test_dev_mode_is_told(command: Run) -> None:
    out = inside(command, "try: p.row()\nexcept p.NotServedError as error: print(error)", "--", "-X", "dev")
    assert "stepped aside" in out or "dev" in out
