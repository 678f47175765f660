"""Servers with many processes: no request is lost, and every process is served."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from conftest import Note, clean_environment

TESTS = Path(__file__).parent
HAS_GIL = not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled()
#: Whether everything is to be tried: plain CPython too, for its memory beside ours, and more requests.
TRIES_ALL = "PYMEM_TEST_ALL" in os.environ
#: Rows by what is asked for; None is plain CPython.
ROWS = {"pymalloc": "pymalloc" if HAS_GIL else "mimalloc", "debug": "pymalloc_debug" if HAS_GIL else "mimalloc_debug"}
ASKED = [None, *ROWS] if TRIES_ALL else [*ROWS]
REQUESTS = 1000 if TRIES_ALL else 320


def row_of(asked: str | None) -> str:
    return "none" if asked is None else ROWS[asked]


def command(asked: str | None, *words: str) -> list[str]:
    """The words of a server, served."""
    if asked is None:
        return [sys.executable, *words]
    name = "default" if asked == "pymalloc" else asked
    return [sys.executable, "-m", "pymem_domains", "run", "--malloc", name, *words]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextlib.contextmanager
def started(words: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server, which is ended whatever happens."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, stdout=out, stderr=out, env=clean_environment(PYTHONPATH=str(TESTS), **environment), start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            servers.get(port)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


def resident(processes: set[int]) -> int:
    """Resident memory in KiB, on average of those that have not ended meanwhile."""
    sizes = []
    for process in processes:
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            if "VmRSS" in fields:
                sizes.append(int(fields["VmRSS"].split()[0]))
    return sum(sizes) // len(sizes)


def end(process: subprocess.Popen[bytes], log: Path) -> None:
    """A graceful end, without a word of a violation or a lost worker."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM), log.read_text()
    text = log.read_text()
    assert "Fatal Python error" not in text
    assert "Debug memory block" not in text


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("preload", [False, True], ids=["prefork", "preload"])
def test_gunicorn(asked: str | None, preload: bool, tmp_path: Path, note: Note) -> None:
    pytest.importorskip("gunicorn")
    port, log = free_port(), tmp_path / "log"
    words = ["-m", "gunicorn", "servers:wsgi", "--bind", f"127.0.0.1:{port}", "--workers", "2", *["--preload"] * preload]
    with started(command(asked, *words), log) as process:
        wait_for(port, process, log)
        first = servers.ask(port, REQUESTS // 2)
        # New workers take over from the old ones, which finish what they have.
        rest = servers.ask(port, REQUESTS // 2, at_half=lambda: process.send_signal(signal.SIGHUP))
        workers = {body["pid"] for body in servers.ask(port, 40)}
        note(resident(workers))
        end(process, log)
    answers = first + rest
    assert len(answers) == REQUESTS
    assert {body["row"] for body in answers} == {row_of(asked)}
    assert len({body["pid"] for body in answers}) > 2


@pytest.mark.parametrize("asked", ASKED)
def test_uvicorn(asked: str | None, tmp_path: Path, note: Note) -> None:
    pytest.importorskip("uvicorn")
    port, log = free_port(), tmp_path / "log"
    words = ["-m", "uvicorn", "servers:asgi", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    with started(command(asked, *words, "--log-level", "warning"), log) as process:
        wait_for(port, process, log)
        answers = servers.ask(port, REQUESTS)
        note(resident({body["pid"] for body in answers}))
        process.send_signal(signal.SIGHUP)
        time.sleep(2)
        wait_for(port, process, log)
        renewed = servers.ask(port, 40)
        end(process, log)
    assert len(answers) == REQUESTS
    assert {body["row"] for body in answers + renewed} == {row_of(asked)}


@pytest.mark.parametrize("asked", ASKED)
def test_celery(asked: str | None, tmp_path: Path, note: Note) -> None:
    pytest.importorskip("celery")
    for name in ("queue", "control", "done"):
        (tmp_path / name).mkdir()
    send = f"import celery_tasks\nfor number in range({REQUESTS}): celery_tasks.work.delay(number)"
    folder = {"PYMEM_TEST_FOLDER": str(tmp_path)}
    environment = clean_environment(PYTHONPATH=str(TESTS), **folder)
    subprocess.run([sys.executable, "-c", send], check=True, env=environment, timeout=300)
    log = tmp_path / "log"
    words = ["-m", "celery", "-A", "celery_tasks", "worker", "--pool", "prefork", "--concurrency", "2"]
    words += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "warning"]
    # The first workers are replaced after so many tasks each.
    words += ["--max-tasks-per-child", str(REQUESTS * 3 // 10)]

    def done() -> list[int]:
        return [int(line) for file in (tmp_path / "done").iterdir() for line in file.read_text().split()]

    with started(command(asked, *words), log, **folder) as process:
        deadline = time.monotonic() + 300
        while len(done()) < REQUESTS and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        alive = {int(file.name) for file in (tmp_path / "done").iterdir() if Path("/proc", file.name).exists()}
        if alive:
            note(resident(alive))
        end(process, log)
    assert sorted(done()) == list(range(REQUESTS))
    assert len(list((tmp_path / "done").iterdir())) > 2
    assert f'"row": "{row_of(asked)}"' in (tmp_path / "row").read_text()


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(asked: str | None, method: str) -> None:
    code = (
        "import multiprocessing, servers\n"
        "if __name__ == '__main__':\n"
        f"    with multiprocessing.get_context({method!r}).Pool(2, maxtasksperchild=10) as pool:\n"
        f"        print(pool.map(servers.square, range({REQUESTS}), chunksize={REQUESTS // 50}))"
    )
    words = command(asked, "-c", code)
    environment = clean_environment(PYTHONPATH=str(TESTS))
    result = subprocess.run(words, check=True, capture_output=True, text=True, env=environment, timeout=300)
    answers = eval(result.stdout)
    assert [square for _, square, _ in answers] == [number * number for number in range(REQUESTS)]
    assert {row for _, _, row in answers} == {row_of(asked)}
    assert result.stderr == ""
    assert len({process for process, _, _ in answers}) > 2
