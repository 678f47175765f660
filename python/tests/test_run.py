"""`run`: the program is the one that was asked for, in the process that was started, and served."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, clean_environment

SERVED = "import pymem_domains as p; print(p.row() if p.active() else 'no')"


def test_hi(command: Run) -> None:
    result = command("run", "-c", "print('hi')")
    assert (result.returncode, result.stdout, result.stderr) == (0, "hi\n", "")


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ([], "pymalloc"),
        (["--malloc", "malloc"], "malloc"),
        (["--malloc=mimalloc"], "mimalloc"),
        (["--debug", "strict"], "pymalloc_debug"),
        (["--debug", "strict,guard=1/5"], "pymalloc_debug"),
        (["--malloc", "mimalloc_debug", "--debug", "serial"], "mimalloc_debug"),
        (["--debug", "guard=1/100,backtrace=4"], "pymalloc"),
    ],
)
def test_rows(command: Run, options: list[str], row: str) -> None:
    if hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled():
        pytest.skip("without the GIL mem and obj are the interpreter's own")
    result = command("run", *options, "-c", SERVED)
    assert (result.stdout, result.stderr) == (f"{row}\n", "")


@pytest.mark.parametrize("switch", ["-E", "-I"])
def test_an_interpreter_that_ignores_its_variables_is_served(command: Run, switch: str) -> None:
    if hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled():
        pytest.skip("without the GIL mem and obj are the interpreter's own")
    for options, env, row in (
        (["--debug", "strict"], {}, "pymalloc_debug"),
        (["--debug", "strict"], {"PYTHONMALLOC": "malloc_debug"}, "malloc_debug"),
        (["--malloc", "mimalloc"], {"PYTHONMALLOC": "malloc"}, "mimalloc"),
    ):
        result = command("run", *options, switch, "-c", SERVED, env=env)
        assert (result.stdout, result.stderr) == (f"{row}\n", "")


def test_a_child_may_choose_another_row(command: Run) -> None:
    child = f"PYTHONMALLOC=malloc {sys.executable} -c {shlex.quote(SERVED)}"
    result = command("run", "--malloc", "debug", "sh", "-c", child)
    assert (result.stdout, result.stderr) == ("malloc\n", "")


def test_dev_mode_says_that_nothing_is_served(command: Run) -> None:
    result = command("run", "--malloc", "mimalloc", "-X", "dev", "-W", "ignore", "-c", SERVED)
    assert (result.returncode, result.stdout) == (0, "no\n")
    assert "PYMEM_MALLOC: nothing is served in dev mode" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_words_of_the_program_are_its_own(command: Run, tmp_path: Path) -> None:
    show = "import sys; print(sys.argv, sys.stdin.read())"
    (tmp_path / "app.py").write_text(show)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text(show)
    (tmp_path / "module.py").write_text(show)
    (tmp_path / "plain").write_text(show)
    for words, first in (
        (["app.py"], "app.py"),
        (["folder"], "folder"),
        (["./plain"], "./plain"),
        (["-m", "module"], str(tmp_path / "module.py")),
        (["-c", show], "-c"),
        (["--", sys.executable, "app.py"], "app.py"),
    ):
        result = command("run", *words, "--malloc", "-x", stdin="in", cwd=tmp_path)
        assert (result.stdout, result.stderr) == (f"{[first, '--malloc', '-x']} in\n", ""), words


def test_the_status_is_the_programs(command: Run) -> None:
    assert command("run", "-c", "import sys; sys.exit(7)").returncode == 7
    killed = command("run", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert killed.returncode == -signal.SIGTERM


def test_the_process_is_the_one_that_was_started() -> None:
    words = [sys.executable, "-m", "pymem_domains", "run", "-c", "import os; print(os.getpid())"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=clean_environment()) as process:
        out, _ = process.communicate()
    assert int(out) == process.pid


def test_children_follow_and_nested_runs_preload_once(command: Run) -> None:
    child = "import os; print(os.environ['LD_PRELOAD'].count('libpymem'), os.environ['PYMEM_MALLOC'])"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-m', 'pymem_domains', 'run', '-c', {child!r}])"
    result = command("run", "--malloc", "debug", "-c", parent)
    assert (result.stdout, result.stderr) == ("1 debug\n", "")


def test_what_is_preloaded_already_stays(command: Run) -> None:
    libc = "libm.so.6"
    result = command("run", "-c", "import os; print(os.environ['LD_PRELOAD'].split(':')[1:])", env={"LD_PRELOAD": libc})
    assert result.stdout == f"['{libc}']\n"


def test_the_switch(command: Run) -> None:
    result = command("run", "--malloc", "debug", "-c", SERVED, env={"PYMEM_DOMAINS": "off"})
    assert result.stdout == "no\n"


def test_the_script_is_the_command() -> None:
    script = Path(sys.executable).parent / "pymem-domains"
    result = subprocess.run(
        [script, "run", "-c", "print('hi')"], check=True, capture_output=True, text=True, env=clean_environment()
    )
    assert result.stdout == "hi\n"


def test_a_report_and_a_log(command: Run, tmp_path: Path) -> None:
    trace, picture = tmp_path / "calls.log", tmp_path / "heap.svg"
    result = command("run", "--stats", "--trace", str(trace), "-c", "pass")
    assert result.stderr.startswith("pymem: ")
    assert trace.stat().st_size > 10_000
    if not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled():
        command("run", "--heap-map", str(picture), "-c", "pass")
        lines = command("map", str(picture)).stdout.splitlines()
        assert lines[0].startswith("pymalloc, process ")
        assert " arenas, " in lines[1]


def test_a_start_imports_little() -> None:
    """What costs a start its time is what is imported: nothing that the interpreter has not imported by itself."""
    stop = "os.execve = lambda *words: print(sorted(sys.modules), flush=True) or os._exit(0)"
    ours = {f"pymem_domains{name}" for name in ("", "._command", "._errors", "._preload", "._request", "._run")}
    # As the script does, and as `python -m` does after what it needs itself.
    for needs, start in (
        ("os, sys", "import pymem_domains._command as c; c.main(words)"),
        ("os, runpy, sys, warnings", "sys.argv[1:] = words; runpy._run_module_as_main('pymem_domains')"),
    ):
        code = f"import {needs}; words = ['run', '-c', 'pass']; {stop}; print(sorted(sys.modules), flush=True); {start}"
        result = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=clean_environment()
        )
        plain, whole = map(set, map(eval, result.stdout.splitlines()))
        assert whole - plain - {"pymem_domains.__main__"} == ours


class TestRefusals:
    """Each is one sentence on stderr, and a status that the help names."""

    def refused(self, result: subprocess.CompletedProcess[str], status: int, words: str) -> None:
        assert result.returncode == status, result.stderr
        assert result.stdout == ""
        assert result.stderr.startswith("pymem-domains: ")
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1

    def test_a_name_that_is_none(self, command: Run) -> None:
        self.refused(command("run", "--malloc", "jemalloc", "-c", "pass"), 2, "`jemalloc` is no row")

    def test_checks_without_hooks(self, command: Run) -> None:
        result = command("run", "--malloc", "pymalloc", "--debug", "strict", "-c", "pass")
        self.refused(result, 2, "`strict` needs debug hooks, and the row `pymalloc` has none; choose pymalloc_debug")

    def test_an_amount_that_is_none(self, command: Run) -> None:
        self.refused(command("run", "--limit", "much", "-c", "pass"), 2, "`much` is no amount of memory")

    def test_no_program_and_no_option(self, command: Run) -> None:
        for words in (["run"], ["run", "--shoes", "-c", "pass"], ["run", "--malloc"]):
            result = command(*words)
            assert result.returncode == 2
            assert "usage: pymem-domains run" in result.stderr

    def test_what_would_be_ignored(self, command: Run) -> None:
        for words in (["--profile", ""], ["--trace="], ["--malloc="]):
            result = command("run", *words, "-c", "pass")
            self.refused(result, 2, f"`{words[0].rstrip('=')}` needs a value that is not empty")
        self.refused(command("run", "--trace-limit", "1 MB", "-c", "pass"), 2, "add --trace FILE")

    def test_no_such_program(self, command: Run) -> None:
        self.refused(command("run", "no-such-program"), 127, "there is no program `no-such-program`")

    def test_a_program_that_cannot_be_started(self, command: Run, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        broken.write_bytes(b"\x7fELF and no more")
        broken.chmod(0o755)
        self.refused(command("run", str(broken)), 126, f"{broken} cannot be started: ")

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
    def test_a_program_of_another_user(self, command: Run, tmp_path: Path) -> None:
        program = tmp_path / "other"
        shutil.copy("/bin/true", program)
        os.chown(program, 65534, 65534)
        program.chmod(0o4755)
        self.refused(command("run", str(program)), 126, "runs as another user (setuid or setgid)")

    def test_another_allocator(self, command: Run) -> None:
        result = command("run", "-c", "pass", env={"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"})
        assert "another allocator, /usr/lib/libjemalloc.so.2" in result.stderr
        assert result.returncode == 125

    def test_no_library(self, command: Run) -> None:
        result = command("run", "-c", "pass", env={"PYMEM_LIBRARY": "/no/library.so"})
        self.refused(result, 125, "there is no library at /no/library.so")

    def test_a_library_for_another_machine(self, command: Run, tmp_path: Path) -> None:
        library = tmp_path / "libpymem_preload.so"
        head = bytearray(Path("/proc/self/exe").read_bytes()[:64])
        head[18:20] = b"\xf3\x00"
        library.write_bytes(head)
        result = command("run", "-c", "pass", env={"PYMEM_LIBRARY": str(library)})
        self.refused(result, 125, "is not for this machine")

    def test_a_path_that_cannot_be_preloaded(self, command: Run, tmp_path: Path) -> None:
        library = tmp_path / "my library.so"
        shutil.copy("/proc/self/exe", library)
        result = command("run", "-c", "pass", env={"PYMEM_LIBRARY": str(library)})
        self.refused(result, 125, "has a space, a colon or a dollar sign")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("def confstr(name): raise ValueError(name)\nos.confstr = confstr", "needs the GNU C library"),
            ("sys.platform = 'darwin'", "is for Linux, and this is darwin"),
            ("sys.implementation.name = 'pypy'", "only CPython can be served, and this is pypy"),
            (
                "import _imp\ndel _imp.create_dynamic",
                "does not export PyMem_SetAllocator",
            ),
        ],
    )
    def test_a_python_that_cannot_be_served(self, change: str, words: str) -> None:
        code = f"import os, sys\n{change}\nfrom pymem_domains._command import main\nsys.exit(main(['run', '-c', 'pass']))"
        result = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=clean_environment()
        )
        self.refused(result, 125, words)
