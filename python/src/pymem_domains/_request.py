"""What a process is to be started with, as the variables that the library reads."""

from ._errors import USAGE, Refusal

# The names of `PYTHONMALLOC`, as `cargo xtask docs` writes them.
# <!-- names -->
ROWS = (
    "default",
    "debug",
    "malloc",
    "malloc_debug",
    "pymalloc",
    "pymalloc_debug",
    "mimalloc",
    "mimalloc_debug",
)
# <!-- /names -->


class Request:
    """A row of the table, checks, and what is to be written where. Every field may be left alone."""

    def __init__(self) -> None:
        #: A name of `PYTHONMALLOC`, in a variable that the interpreter's `-E` and `-I` do not reach.
        self.malloc: str | None = None
        #: The words of `PYMEM_DEBUG`.
        self.debug: str | None = None
        #: A report on stderr at exit.
        self.stats = False
        #: The file that gets every call of the three domains.
        self.trace: str | None = None
        #: Bytes at which that file stops growing.
        self.trace_limit: int | None = None
        #: The file that gets a picture of the heap at exit and on SIGUSR1.
        self.heap_map: str | None = None
        #: The file that gets who holds the memory at exit and on SIGUSR1, and options after commas.
        self.profile: str | None = None
        #: Bytes of live blocks above which an allocation fails; 0 only counts them.
        self.limit: int | None = None

    def choose_row(self, inherited: "str | None") -> None:
        """Completes the row from the words: checks that need debug hooks ask for a row that has them.

        `inherited` is the row that the environment names already.
        """
        row = self.malloc or inherited or None
        if self.malloc is not None and self.malloc not in ROWS:
            raise Refusal(USAGE, f"`{self.malloc}` is no row; choose one of {', '.join(ROWS)}")
        if not self.debug:
            return
        words = [word.partition("=")[0] for word in self.debug.split(",")]
        # What pages find, they find without hooks too.
        if "guard" in words and set(words) <= {"guard", "backtrace", "native"}:
            return
        if row is not None and not row.endswith("debug"):
            raise Refusal(
                USAGE,
                f"`{self.debug}` needs debug hooks, and the row `{row}` has none; choose "
                f"{'debug' if row == 'default' else row + '_debug'}",
            )
        # Also a row that is inherited: `-E` hides it.
        self.malloc = row or "debug"

    def variables(self) -> dict[str, str]:
        """The variables, but for the one that preloads the library."""
        wanted = {
            # The library asks the second where the first is empty, which a child may have set again.
            "PYTHONMALLOC": None if self.malloc is None else "",
            "PYMEM_MALLOC": self.malloc,
            "PYMEM_DEBUG": self.debug,
            "PYMEM_STATS": "1" if self.stats else None,
            "PYMEM_TRACE": self.trace,
            "PYMEM_TRACE_LIMIT": None if self.trace_limit is None else str(self.trace_limit),
            "PYMEM_PROFILE": self.profile,
            "PYMEM_HEAP_MAP": self.heap_map,
            "PYMEM_LIMIT": None if self.limit is None else str(self.limit or "none"),
        }
        return {name: value for name, value in wanted.items() if value is not None}


def parse_bytes(text: str) -> int:
    """A number of bytes: digits with an optional unit, `kB`, `MB`, `GB` in thousands and `KiB`, `MiB`, `GiB` in 1024s.

    >>> parse_bytes("100 MB"), parse_bytes("1.5 KiB"), parse_bytes("0 B"), parse_bytes("77")
    (100000000, 1536, 0, 77)
    """
    digits = text.strip()
    unit = digits.lstrip("0123456789.")
    number = digits[: len(digits) - len(unit)]
    factor = _UNITS.get(unit.strip().lower())
    try:
        if factor is not None:
            return int(float(number) * factor) if "." in number else int(number) * factor
    except ValueError:
        pass
    raise Refusal(USAGE, f"`{text}` is no amount of memory; give one such as 64, 100 MB or 1.5 GiB")


_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
