"""`env`, `map`, `replay` and `doctor`."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from conftest import Run, clean_environment, start


def test_a_shell_reads_it(command: Run) -> None:
    lines = command("env", "--malloc", "debug").stdout
    code = "import pymem_domains as p; print(p.row())"
    result = start("sh", "-c", f"{lines}\nexec {sys.executable} -c '{code}'")
    assert result.stderr == ""
    assert result.stdout.rstrip().endswith("_debug")


def test_the_forms(command: Run) -> None:
    docker = command("env", "--debug", "strict", "--format", "docker").stdout.splitlines()
    assert docker[:3] == ['ENV PYTHONMALLOC=""', 'ENV PYMEM_MALLOC="debug"', 'ENV PYMEM_DEBUG="strict"']
    assert docker[3].startswith('ENV LD_PRELOAD="/')
    unit = command("env", "--malloc", "mimalloc", "--format", "systemd").stdout.splitlines()
    assert unit[:2] == ['Environment="PYTHONMALLOC="', 'Environment="PYMEM_MALLOC=mimalloc"']


def test_words_that_are_none(command: Run) -> None:
    result = command("env", "--debug", "stricct", env={"PYTHONDEVMODE": "1"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("pymem-domains: PYMEM_DEBUG: unknown option `stricct`")


def test_what_is_no_picture(command: Run, tmp_path: Path) -> None:
    (tmp_path / "x.svg").write_text("<svg></svg>")
    result = command("map", str(tmp_path / "x.svg"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "is no heap map" in result.stderr
    assert command("map", "/no/such.svg").returncode == 2


def test_a_recording_again(command: Run, tmp_path: Path) -> None:
    log = tmp_path / "calls.log"
    code = "kept = [bytes(300) for _ in range(20_000)]; import os; os._exit(0)"
    assert command("run", "--trace", str(log), "-c", code).returncode == 0
    told = command("replay", str(log))
    assert (told.returncode, told.stderr) == (0, "")
    first, _, *rows = told.stdout.splitlines()
    calls = int(first.removeprefix(f"{log}: ").split()[0])
    assert calls > 20_000
    assert [row.split()[0] for row in rows] == ["malloc", "pymalloc", "mimalloc"]
    for row in rows:
        _, seconds, _, each, _, peak, _, end, _ = row.split()
        assert abs(float(seconds) * 1e9 / calls - float(each)) < 0.1 + 0.001e9 / calls
        # The blocks that were kept, and at most as much again.
        assert 6.4 <= float(end) <= float(peak) < 16
    told = command("replay", str(log), "--malloc", "debug", "--malloc", "malloc")
    assert [row.split()[0] for row in told.stdout.splitlines()[2:]] == ["debug", "malloc"]
    command("run", "--trace", str(log), "--trace-limit", "1 MiB", "-c", "for i in range(100_000): [i]")
    assert "were dropped: the log was at its limit (--trace-limit)" in command("replay", str(log)).stdout


def test_what_is_no_recording(command: Run, tmp_path: Path) -> None:
    text, cut = tmp_path / "x.log", tmp_path / "cut.log"
    text.write_text("no recording")
    cut.write_bytes(b"PYMLOG01")
    for words, said in (
        ([str(text)], 'expected "PYMTRC01" or "PYMTRC02"'),
        ([str(cut)], "ends within its head"),
        (["/no/such.log"], "/no/such.log: No such file or directory"),
    ):
        result = command("replay", *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert command("replay", str(text), "--malloc", "jemalloc").returncode == 2


def test_a_replay_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "calls.log"
    os.mkfifo(log)
    words = [sys.executable, "-m", "pymem_domains", "replay", str(log)]
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment())
    # The replay has the log open then, and waits for what is in it.
    with started as process, log.open("wb"):
        # The first may come while the parent still ends its fork, whose handlers swallow it.
        for _ in range(60):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                # Both processes have the streams.
                process.communicate(timeout=1)
                break
    # 2 would be a log that ended.
    assert process.returncode not in (0, 2, None)


def test_the_doctor(command: Run) -> None:
    told = command("doctor")
    lines = told.stdout.splitlines()
    assert told.returncode == 0
    assert len(lines) <= 12
    assert lines[0].startswith(f"python       CPython {sys.version_info[0]}.{sys.version_info[1]}")
    assert any(line.startswith("served       no: ") for line in lines)
    sick = command("doctor", env={"PYMEM_LIBRARY": "/no/library.so"})
    assert sick.returncode == 125
    assert "to change    there is no library at" in sick.stdout
    inside = command("run", "--malloc", "debug", "-m", "pymem_domains", "doctor")
    assert "_debug (raw malloc + debug, " in inside.stdout


def test_help_and_version(command: Run) -> None:
    assert "doctor" in command("--help").stdout
    assert command("--version").stdout == "pymem-domains 0.1.0\n"
    assert "Status:" in command("run", "--help").stdout
    assert command("dance").returncode == 2


def test_a_bar_on_a_terminal() -> None:
    code = """
import os, threading, time
from pymem_domains._replay import _Bar
_Bar._SHORT = 0.0
bar = _Bar(2)
for row in ("malloc", "mimalloc"):
    receive, send = os.pipe()
    threading.Timer(0.5, os.write, (send, b"x")).start()
    bar.wait(row, receive)
"""
    terminal, its_end = pty.openpty()
    subprocess.run([sys.executable, "-c", code], check=True, stderr=its_end, timeout=60)
    os.close(its_end)
    told = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert f"\r[{'-' * 30}] 1 of 2: malloc, 0 s" in told
    assert "\r[###############" in told
    assert "2 of 2: mimalloc, 0 s" in told
    assert told.endswith("\r\x1b[K"), "nothing stays"
