"""Builds the library by cargo for a wheel, names the wheel's platform by what the library needs, and packs its sources for
an sdist."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: A library that is built already, in place of one that cargo builds.
LIBRARY = "PYMEM_BUILD_LIBRARY"
#: The glibc to build for, as `2.17`, where cargo-zigbuild is there; without it, the one of this machine.
GLIBC = "PYMEM_BUILD_GLIBC"

#: The workspace's files that cargo needs; in an sdist they are in the folder `workspace`.
SOURCES = (".cargo", "Cargo.toml", "Cargo.lock", "LICENSE-MIT", "LICENSE-APACHE", "crates", "bench", "xtask")


class CustomBuildHook(BuildHookInterface[Any]):
    """hatchling's hook, for both targets."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the library, or the sources of it, to what is packed."""
        root = Path(self.root)
        workspace = root / "workspace" if (root / "workspace").is_dir() else root.parent
        if self.target_name == "sdist":
            build_data["force_include"].update(sources(workspace))
            return
        library = built(workspace)
        stripped = root / "build" / "libpymem_preload.so"
        stripped.parent.mkdir(exist_ok=True)
        strip(library, stripped)
        header = workspace / "crates/pymem-preload/include/pymem.h"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(stripped)}"
        if version != "editable":
            build_data["force_include"].update(
                {
                    str(stripped): "pymem_domains/lib/libpymem_preload.so",
                    str(header): "pymem_domains/include/pymem.h",
                }
            )


def sources(workspace: Path) -> dict[str, str]:
    """Every file that is under version control or, in an unpacked sdist, that is there."""
    command = ["git", "-C", str(workspace), "ls-files", "-z", "--", *SOURCES]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        names = [name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        found = (path for name in SOURCES for path in [workspace / name, *(workspace / name).rglob("*")])
        names = [str(path.relative_to(workspace)) for path in found if path.is_file()]
    wanted = (name for name in names if not name.startswith("bench/traces/") and (workspace / name).is_file())
    return {str(workspace / name): f"workspace/{name}" for name in wanted}


def built(workspace: Path) -> Path:
    """The library that cargo builds, with the profile that ships."""
    if chosen := os.environ.get(LIBRARY):
        return Path(chosen)
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        raise SystemExit("pymem-domains is for Linux with the GNU C library; this system has another one")
    if shutil.which("cargo") is None:
        raise SystemExit("there is no cargo on PATH; install Rust 1.85 or newer, or take a wheel")
    target = f"{platform.machine()}-unknown-linux-gnu"
    command = ["cargo", "rustc"]
    if glibc := os.environ.get(GLIBC):
        command = ["cargo-zigbuild", "rustc", "--target", f"{target}.{glibc}"]
    command += ["--locked", "--profile", "preload", "--package", "pymem-preload", "--lib"]
    # Together with the `rlib` that the manifest names beside it, cargo would leave its link-time optimisation out.
    command += ["--crate-type", "cdylib"]
    messages = subprocess.run(
        [*command, "--message-format", "json-render-diagnostics"],
        cwd=workspace,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    for line in messages.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "pymem_preload":
            for name in message.get("filenames", []):
                if name.endswith(".so"):
                    return Path(name)
    raise SystemExit("cargo names no library among what it built")


def strip(library: Path, stripped: Path) -> None:
    """Copies the library without its symbols and debug information."""
    program = next((name for name in ("strip", "llvm-strip", "eu-strip") if shutil.which(name)), None)
    if program is None:
        shutil.copyfile(library, stripped)
        return
    subprocess.run([program, "--strip-all", "-o", str(stripped), str(library)], check=True)


def platform_tag(library: Path) -> str:
    """The tag of the oldest glibc that has every symbol which the library asks for."""
    major, minor = glibc_floor(library)
    machine = platform.machine()
    tag = f"manylinux_{major}_{minor}_{machine}"
    return f"{tag}.manylinux2014_{machine}" if (major, minor) == (2, 17) else tag


def glibc_floor(library: Path) -> tuple[int, int]:
    """The newest version among the symbols that are asked of glibc, but at least the oldest that Rust supports."""
    from elftools.elf.elffile import ELFFile

    newest = (2, 17)
    with library.open("rb") as file:
        needs: Any = ELFFile(file).get_section_by_name(".gnu.version_r")
        for _, versions in needs.iter_versions() if needs else ():
            for needed in versions:
                if found := re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", needed.name):
                    newest = max(newest, (int(found[1]), int(found[2])))
    return newest
