"""`run --profile`, `report`, `profile` and `snapshot`."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest
from conftest import Run, start
from test_module import HAS_GIL, inside

import pymem_domains

APP = """
def serve():
    return [bytes(1000) for _ in range(1000)]
def more():
    return [bytes(2000) for _ in range(100)]
"""

profiled = pytest.mark.skipif(not HAS_GIL, reason="without the GIL the frames of other threads cannot be read")


@profiled
def test_a_profile_of_a_program(command: Run, tmp_path: Path) -> None:
    file, page = tmp_path / "app.json", tmp_path / "app.html"
    (tmp_path / "app.py").write_text(APP + "kept = serve()\n")
    result = command("run", "--profile", f"{file},frames=8", "app.py", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    table = command("report", str(file))
    assert (table.returncode, table.stderr) == (0, "")
    assert f"{tmp_path}/app.py:3 " in table.stdout or "app.py:3 " in table.stdout
    assert command("report", str(file), "--out", str(page)).returncode == 0
    assert page.read_text().startswith("<!")
    stacks = command("report", str(file), "--format", "collapsed").stdout
    assert any("serve" in line and int(line.rsplit(" ", 1)[1]) > 1_000_000 for line in stacks.splitlines())
    started = f"{sys.executable} -m pymem_domains report {file}"
    unread = start("sh", "-c", f"({{ sleep 0.5; {started}; echo $? >&2; }}) | true")
    assert unread.stderr == "0\n", "whoever reads has seen enough"
    same = command("report", str(file), "--before", str(file), "--format", "collapsed")
    assert (same.returncode, same.stdout) == (0, "")


@profiled
def test_what_grew(command: Run, tmp_path: Path) -> None:
    code = f"""{APP}
with p.profile({str(tmp_path / "app.json")!r}):
    a = serve()
    before = p.snapshot()
    b = more()
    a.pop()
    grown = p.snapshot() - before
first = grown.lines[0]
print(first.function in ("more", "<listcomp>"), first.number, 203_300 <= first.bytes < 206_000, first.blocks)
print([(line.bytes, line.blocks) for line in grown.lines if (line.file, line.number) == (first.file, 4)])
print(before.bytes > 1_000_000)
"""
    out = inside(command, code)
    # The lines of `inside` stand before: an import. The list itself is a block of its own.
    assert out == "True 6 True 101\n[(-1033, -1)]\nTrue\n"
    assert '"pymem-profile"' in (tmp_path / "app.json").read_text()


def held(profile: Path) -> set[int]:
    """The lines of `-c` that hold more than 100,000 bytes."""
    lines = json.loads(profile.read_text())
    return {number for _, file, number, size, _ in lines if file == "<string>" and size > 100_000}


@profiled
def test_a_profile_in_a_profile_ends_alone(command: Run, tmp_path: Path) -> None:
    outer, inner, other = (tmp_path / f"{name}.lines.json" for name in ("outer", "inner", "other"))
    code = f"""
a = [bytes(300) for _ in range(1000)]
with p.profile({str(inner)!r}):
    b = [bytes(400) for _ in range(1000)]
c = [bytes(500) for _ in range(1000)]
"""
    inside(command, code, "--profile", str(outer))
    assert (held(inner), held(outer)) == ({3, 5}, {3, 5, 6})
    code = f"""
first, second = p.profile({str(inner)!r}), p.profile({str(other)!r})
first.__enter__(), second.__enter__(), first.__exit__(None, None, None)
d = [bytes(600) for _ in range(1000)]
second.__exit__(None, None, None)
e = [bytes(700) for _ in range(1000)]
with p.profile({str(outer)!r}): f = [bytes(800) for _ in range(1000)]
"""
    inside(command, code)
    # The first one's file is written again at the end.
    assert (held(inner), held(other), held(outer)) == ({5, 8}, {5}, {5, 8})


@profiled
def test_a_second_profile_has_a_peak_of_its_own(command: Run, tmp_path: Path) -> None:
    path, kept = str(tmp_path / "app.collapsed"), tmp_path / "kept"
    code = f"""
with p.profile({path!r}): a = [bytes(1000) for _ in range(20_000)]
del a
with p.profile({path!r}): b = [bytes(1000) for _ in range(300)]
import shutil; shutil.copy({path!r}, {str(kept)!r})
def refused(path, **options):
    try:
        p.profile(path, **options).__enter__()
    except (ValueError, p.NotProfiledError) as error: print(type(error).__name__, error)
refused({path!r}, sample=1000)
refused({path!r}, frames=4)
refused({path!r}, frames=1000)
refused("/no/app.json")
with p.profile({path!r}): refused("/no/app.json")
"""
    lines = inside(command, code).splitlines()
    peak = sum(int(line.rsplit(" ", 1)[1]) for line in kept.read_text().splitlines())
    assert 300_000 < peak < 1_000_000
    assert [line.split()[0] for line in lines] == ["ValueError"] * 3 + ["NotProfiledError"] * 2
    assert "a process has one profile" in lines[0]
    assert lines[0] == lines[1]
    assert "frames is 1 to 128" in lines[2]
    assert "/no/app.json cannot be written" in lines[3]


@profiled
def test_a_profile_is_where_it_was_asked_for(command: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    code = f"""
import os
os.chdir({str(tmp_path)!r})
with p.profile("first.json"): os.chdir("elsewhere")
with p.profile("second.json"): os.chdir("..")
"""
    inside(command, code)
    assert [path.name for path in sorted(tmp_path.glob("**/*.json"))] == ["second.json", "first.json"]
    assert (tmp_path / "first.json").exists()


@profiled
def test_profiles_of_forked_children(command: Run, tmp_path: Path) -> None:
    program = """
import os, sys
child = os.fork()
if child == 0: sys.exit()
os.waitpid(child, 0)
print(child)
"""
    for ending in ("speedscope.json", "lines.json", "pb.gz"):
        result = command("run", "--profile", str(tmp_path / f"app.{ending}"), "-W", "ignore", "-c", program)
        written = (tmp_path / f"app.{result.stdout.strip()}.{ending}").read_bytes()
        assert b"pymem-profile" not in written
        assert written[:2] == (tmp_path / f"app.{ending}").read_bytes()[:2]


@profiled
def test_a_child_forked_among_bodies_has_bodies_of_its_own(command: Run, tmp_path: Path) -> None:
    path, inner = str(tmp_path / "app.lines.json"), str(tmp_path / "child.lines.json")
    code = f"""
import os, threading
ends = threading.Event()
def again():
    while not ends.is_set():
        with p.profile({path!r}): pass
threads = [threading.Thread(target=again) for _ in range(2)]
with p.profile({path!r}): pass
for thread in threads: thread.start()
for _ in range(100):
    child = os.fork()
    if child == 0:
        a = [bytes(300) for _ in range(1000)]
        with p.profile({inner!r}): b = [bytes(400) for _ in range(1000)]
        c = [bytes(500) for _ in range(1000)]
        with p.profile({inner!r}): d = [bytes(600) for _ in range(1000)]
        os._exit(0)
    os.waitpid(child, 0)
    import json
    held = {{line[2] for line in json.load(open({inner!r})) if line[3] > 100_000}}
    if held != {{15, 17}}: print(held)
ends.set()
for thread in threads: thread.join()
"""
    assert inside(command, code) == ""


@profiled
def test_no_profile_begins_while_tracemalloc_traces(command: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "x.lines.json")
    code = (
        "import tracemalloc; tracemalloc.start()\n"
        f"try: p.profile({path!r}).__enter__()\nexcept p.NotProfiledError as error: print(error)\n"
        f"tracemalloc.stop()\nwith p.profile({path!r}): kept = [bytes(1000) for _ in range(1000)]"
    )
    assert "`tracemalloc` traces" in inside(command, code)
    assert held(Path(path)) == {6}


@profiled
def test_a_snapshot_does_not_find_itself(command: Run, tmp_path: Path) -> None:
    code = (
        "import pymem_domains as p\n"
        "p.snapshot()\n"
        "before = p.snapshot()\n"
        "kept = [bytes(100) for _ in range(100)]\n"
        "grown = (p.snapshot() - before).lines\n"
        "print(sum(line.bytes for line in grown) < 20_000, grown[0].file, grown[0].number)"
    )
    result = command("run", "--profile", str(tmp_path / "app.json"), "-c", code)
    assert (result.stdout, result.stderr) == ("True <string> 4\n", "")


@profiled
def test_what_is_there_from_the_start(command: Run, tmp_path: Path) -> None:
    code = (
        "import pymem_domains as p\n"
        "held = p.snapshot()\n"
        "print([line.function for line in held.lines if not line.file], held.bytes > 10_000)"
    )
    result = command("run", "--profile", str(tmp_path / "app.json"), "-c", code)
    assert (result.stdout, result.stderr) == ("['(no frame)'] True\n", "")


@profiled
def test_where_an_object_was_made(command: Run, tmp_path: Path) -> None:
    code = """
class Plain: pass
class Slots: __slots__ = ("a",)
class Table(dict): pass
def make(kind): return kind()
for kind in (Plain, Slots, Table, set, lambda: bytes(1000), lambda: 10**100, lambda: (n for n in ())):
    calls = p.get_object_traceback(make(kind))
    places = [(call.function, call.number) for call in calls if call.function != "<lambda>"]
    assert places == [("<module>", 8), ("make", 6)], calls
print(calls[1], p.get_object_traceback(None))
"""
    out = inside(command, code, "--profile", str(tmp_path / "app.json"))
    assert out == 'File "<string>", line 6, in make None\n'
    late = f"with p.profile({str(tmp_path / 'late.json')!r}): kept = bytes(1000)\nprint(p.get_object_traceback(kept)[0].number)"
    assert inside(command, late) == "2\n"
    assert inside(command, late, "--malloc", "mimalloc") == "2\n"


@profiled
def test_what_is_sampled(command: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "app.json")
    code = f"{APP}\nwith p.profile({path!r}, sample=10_000, frames=4):\n    a = serve()\n    print(p.snapshot().bytes)"
    assert 600_000 < int(inside(command, code)) < 1_500_000
    assert '"mode":{"sampled":10000}' in Path(path).read_text().replace(" ", "")


def test_no_profile(command: Run, tmp_path: Path) -> None:
    asked = functools.partial(pymem_domains.get_object_traceback, object())
    for call in (pymem_domains.snapshot, asked, pymem_domains.profile(tmp_path / "x").__enter__):
        with pytest.raises(pymem_domains.NotServedError, match="python -m pymem_domains run"):
            call()
    with pytest.raises(ValueError, match="has a comma"):
        pymem_domains.profile("a,b")
    out = inside(command, "try: p.snapshot()\nexcept p.NotProfiledError as error: print(error)")
    assert "run --profile FILE" in out
    assert inside(command, "try: p.get_object_traceback(p)\nexcept p.NotProfiledError as error: print(error)") == out
    code = "try: p.profile({!r}{}).__enter__()\nexcept {} as error: print(error)"
    missing = str(tmp_path / "no" / "app.json")
    assert "cannot be written" in inside(command, code.format(missing, "", "p.NotProfiledError"))
    if HAS_GIL:
        assert "frames is 1 to 128" in inside(command, code.format("x", ", frames=0", "ValueError"))
    missing = command("run", "--profile", f"{tmp_path}/x,shoes", "-c", "pass").stderr
    assert "shoes" in missing


def test_what_is_no_profile(command: Run, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for words, said in (
        ([str(tmp_path / "x.json")], "x.json"),
        (["/no/such.json"], "/no/such.json"),
        ([str(tmp_path / "x.json"), "--format", "png"], "`png` is no format"),
    ):
        result = command("report", *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
