"""The pytest plugin, in sessions of their own."""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import start

SUITE = """
import ctypes, os, sys, warnings
import pytest

library = ctypes.PyDLL({planted!r})

def test_first(): pass
def test_overrun(): print("before the fault"); library.overrun()
def test_between(tmp_path): (tmp_path / "x").write_text("a"); warnings.warn("careful")
def test_stale(): library.stale()
def test_after(): assert "libpymem" in os.environ["LD_PRELOAD"]
def test_fails(): assert [1, 2] == [1, 3]
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.xfail
def test_expected(): assert False
@pytest.fixture(scope="module")
def number():
    yield 7
    print("taken down")
@pytest.mark.parametrize("at", [1, 2])
def test_parameters(at, number, capfd):
    os.write(1, b"abc")
    assert capfd.readouterr().out == "abc" and number == 7
"""

LIMITS = """
import ctypes
import pytest

library = ctypes.PyDLL({planted!r})
kept = []
# Numbers that are there before the tests: one that is made in a test is a block of its own.
AT = 1_000_000 - bytes(0).__sizeof__()
ABOVE = AT + 1

@pytest.mark.limit_memory("1 MB")
def test_at_the_limit(): bytes(AT)
@pytest.mark.limit_memory("1 MB")
def test_a_byte_above(): bytes(ABOVE)
@pytest.mark.limit_memory("1 MB")
def test_one_percent_below(): bytes(990_000)
@pytest.mark.limit_leaks("0 B", warmups=2)
def test_lost_block(): library.lose()
@pytest.mark.limit_leaks("0 B")
def test_growing_list(): kept.append(None)
@pytest.mark.limit_leaks("100 B")
def test_allowed_loss(): library.lose()
@pytest.mark.limit_leaks("0 B")
def test_clean(): library.keep_nothing(); sorted(str(n) for n in range(100))
@pytest.mark.limit_memory("some")
def test_no_amount(): pass
@pytest.mark.limit_memory("1 kB", extra=1)
def test_another_word(): pass
@pytest.mark.limit_memory("1 kB", "2 kB")
def test_two_amounts(): pass
@pytest.mark.limit_leaks("1 kB", 2)
def test_two_words(): pass
"""


def suite(folder: Path, text: str, planted: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text.format(planted=str(planted)))
    return start(sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options, "test_it.py", cwd=folder)


def outcomes(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What became of each test."""
    words = ("PASSED", "FAILED", "SKIPPED", "XFAIL", "ERROR")
    lines = (line.split(" ") for line in result.stdout.splitlines() if line.startswith(words) and "::" in line)
    return {line[1].rpartition("::")[2]: line[0] for line in lines}


EXPECTED = {
    "test_first": "PASSED",
    "test_overrun": "FAILED",
    "test_between": "PASSED",
    "test_stale": "FAILED",
    "test_after": "PASSED",
    "test_fails": "FAILED",
    "test_expected": "XFAIL",
    "test_parameters[1]": "PASSED",
    "test_parameters[2]": "PASSED",
}


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_the_test_of_a_violation_is_named_and_the_rest_runs(tmp_path: Path, planted: Path, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    result = suite(tmp_path, SUITE, planted, "--pymem=strict", "--junitxml=junit.xml", *workers)
    assert result.returncode == 1, result.stdout + result.stderr
    assert outcomes(result) == EXPECTED
    assert "bad trailing pad byte" in result.stdout
    assert "write to a freed block" in result.stdout
    assert "UserWarning: careful" in result.stdout
    assert "largest tests, on pymalloc_debug" in result.stdout or "largest tests, on mimalloc_debug" in result.stdout
    assert result.stderr == ""
    cases = ET.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    failed = {case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None}
    assert {"test_fails"} <= failed
    assert len(failed) == 3


def test_the_first_failure_can_be_the_last(tmp_path: Path, planted: Path) -> None:
    result = suite(tmp_path, SUITE, planted, "--pymem=strict", "-x")
    assert result.returncode == 1
    assert outcomes(result) == {"test_first": "PASSED", "test_overrun": "FAILED"}
    assert "before the fault" in result.stdout


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_limits(tmp_path: Path, planted: Path, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    result = suite(tmp_path, LIMITS, planted, "--pymem=default", *workers)
    expected = {
        "test_at_the_limit": "PASSED",
        "test_a_byte_above": "FAILED",
        "test_one_percent_below": "PASSED",
        "test_lost_block": "FAILED",
        "test_growing_list": "FAILED",
        "test_allowed_loss": "PASSED",
        "test_clean": "PASSED",
        "test_no_amount": "FAILED",
        "test_another_word": "FAILED",
        "test_two_amounts": "FAILED",
        "test_two_words": "FAILED",
    }
    assert outcomes(result) == expected, result.stdout
    assert "limit_memory: 1000001 bytes were live at a time, and 1000000 are the limit" in result.stdout
    assert "24.0 bytes a call, and 0 are the limit" in result.stdout
    assert "limit_memory: `some` is no amount of memory" in result.stdout
    assert "limit_memory takes an amount alone; leave out extra" in result.stdout


def test_what_pytest_keeps_of_a_test_is_no_leak(tmp_path: Path, planted: Path) -> None:
    text = """
import logging, os, warnings
import pytest

pytestmark = pytest.mark.limit_leaks("0 B")
kept = []

def test_log(): logging.getLogger("app").warning("hello")
def test_warning(): warnings.warn("old", DeprecationWarning)
def test_patch(monkeypatch):
    monkeypatch.setenv("PATCHED", "1")
    monkeypatch.setattr(os, "sep", "|")
def test_looks_at_its_log(caplog):
    logging.getLogger("app").warning("hello")
    assert len(caplog.records) == 1 and caplog.text.count("hello") == 1
def test_looks_at_its_warnings(recwarn):
    warnings.warn("careful")
    assert len(recwarn) == 1
def test_keeps(): kept.append(bytes(24))
def test_keeps_and_logs(): kept.append(bytes(24)); logging.getLogger("app").warning("hello")
"""
    result = suite(tmp_path, text, planted, "--pymem=default")
    expected = {
        "test_log": "PASSED",
        "test_warning": "PASSED",
        "test_patch": "PASSED",
        "test_looks_at_its_log": "PASSED",
        "test_looks_at_its_warnings": "PASSED",
        "test_keeps": "FAILED",
        "test_keeps_and_logs": "FAILED",
    }
    assert outcomes(result) == expected, result.stdout


def test_limits_are_not_checked_without_a_row(tmp_path: Path, planted: Path) -> None:
    result = suite(tmp_path, LIMITS, planted)
    assert set(outcomes(result).values()) == {"PASSED"}
    assert "the limits of 11 tests were not checked; add --pymem=pymalloc" in result.stdout


def test_a_session_that_is_told_to_end_ends(tmp_path: Path, planted: Path) -> None:
    text = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.exit('enough', 5)\ndef test_c(): pass\n"
    result = suite(tmp_path, text, planted, "--pymem=debug")
    assert result.returncode == 5
    assert outcomes(result) == {"test_a": "PASSED"}


def test_a_process_outlives_the_test_that_died(tmp_path: Path, planted: Path) -> None:
    text = """
import os, time
from pathlib import Path

def test_dies():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path("child").write_text(str(child))
    os.abort()
def test_a_child_that_comes_back():
    if os.fork() != 0:
        os.wait()
def test_after():
    os.kill(int(Path("child").read_text()), 9)
"""
    began = time.monotonic()
    result = suite(tmp_path, text, planted, "--pymem=debug")
    assert time.monotonic() - began < 50
    expected = {"test_dies": "FAILED", "test_a_child_that_comes_back": "PASSED", "test_after": "PASSED"}
    assert outcomes(result) == expected, result.stdout


def test_processes_that_are_left_end_as_with_pytest(tmp_path: Path, planted: Path) -> None:
    text = """
import concurrent.futures, multiprocessing, time

context = multiprocessing.get_context("fork")
pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)

def test_daemon():
    context.Process(target=time.sleep, args=(60,), daemon=True).start()
def test_pool():
    assert pool.submit(abs, -1).result() == 1
"""
    began = time.monotonic()
    result = suite(tmp_path, text, planted, "--pymem=debug")
    # Each of them has the output that is waited for.
    assert time.monotonic() - began < 50
    assert outcomes(result) == {"test_daemon": "PASSED", "test_pool": "PASSED"}, result.stdout


def test_words_that_are_none(tmp_path: Path, planted: Path) -> None:
    result = suite(tmp_path, "def test_a(): pass", planted, "--pymem=pymalloc,strict")
    assert result.returncode == 4
    assert "`strict` needs debug hooks" in result.stderr
    result = suite(tmp_path, "def test_a(): pass", planted, "--pymem=stricct")
    assert result.returncode == 1
    assert "unknown option `stricct`" in result.stderr
    result = suite(tmp_path, "def test_a(): pass", planted, "--pymem=")
    assert result.returncode == 4
    assert "--pymem is empty; give a row or checks" in result.stderr


def test_an_interpreter_that_ignores_its_variables_checks(tmp_path: Path, planted: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE.format(planted=str(planted)))
    result = start(sys.executable, "-E", "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--pymem=strict", cwd=tmp_path)
    assert outcomes(result) == EXPECTED


def test_a_session_inside_of_another_program_says_how(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_a(): pass")
    code = "import pytest, sys; sys.exit(pytest.main(['--pymem=debug', 'test_it.py']))"
    result = start(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 4
    assert "start it by `python -m pymem_domains run`" in result.stderr
