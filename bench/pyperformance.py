"""Fetches programs of pyperformance, for the benchmark of whole programs.

    python3 bench/pyperformance.py FOLDER [NAME...]
    cargo xtask bench --python --hooks --programs FOLDER

installs their packages below FOLDER and writes a program of about a second for each of them, or for those named. Needs pip.
"""

import subprocess
import sys
from pathlib import Path

PACKAGES = [
    "pyperformance==1.14.0",
    "chameleon==3.9.1",
    "django==4.2.16",
    "docutils==0.18.1",
    "genshi==0.7.7",
    "html5lib==1.1",
    "setuptools==80.9.0",  # chameleon imports its pkg_resources
    "sqlglot==26.0.0",
    "sympy==1.13.3",
    "tomli==2.0.1",
]

# The benchmark's folder, how often it is repeated, and which part of it.
PROGRAMS = {
    "chameleon": ("bm_chameleon", 60, []),
    "deepcopy": ("bm_deepcopy", 800, []),
    "django_template": ("bm_django_template", 10, []),
    "docutils": ("bm_docutils", 1, []),
    "float": ("bm_float", 4, []),
    "genshi_xml": ("bm_genshi", 8, ["xml"]),
    "go": ("bm_go", 4, []),
    "html5lib": ("bm_html5lib", 10, []),
    "json_dumps": ("bm_json_dumps", 30, []),
    "pyflate": ("bm_pyflate", 1, []),
    "regex_compile": ("bm_regex_compile", 4, []),
    "sqlglot_optimize": ("bm_sqlglot_v2", 10, ["optimize"]),
    "sqlglot_parse": ("bm_sqlglot_v2", 200, ["parse"]),
    "sympy_str": ("bm_sympy", 2, ["str"]),
    "sympy_sum": ("bm_sympy", 3, ["sum"]),
    "tomli_loads": ("bm_tomli_loads", 1, []),
    "xml_etree_parse": ("bm_xml_etree", 3, ["parse"]),
}

# Once, in this process, and silent: the times that pyperf would print differ.
PROGRAM = """\
import runpy, sys

sys.path[:0] = {path}
sys.argv[1:] = ["--worker", "--worker-task=0", "--values=1", "--warmups=0", "--loops={loops}"] + {part}
sys.stdout = open("/dev/null", "w")
runpy.run_path({script!r}, run_name="__main__")
"""


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-") or not PROGRAMS.keys() >= {*sys.argv[2:]}:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    wanted = sys.argv[2:] or PROGRAMS
    packages = folder / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--upgrade", "--target", packages]
    subprocess.run(pip + PACKAGES, check=True)
    benchmarks = packages / "pyperformance" / "data-files" / "benchmarks"
    for name in wanted:
        benchmark, loops, part = PROGRAMS[name]
        script = benchmarks / benchmark / "run_benchmark.py"
        path = [str(packages), str(script.parent)]
        text = PROGRAM.format(path=path, loops=loops, part=part, script=str(script))
        (folder / f"{name}.py").write_text(text)


if __name__ == "__main__":
    main()
