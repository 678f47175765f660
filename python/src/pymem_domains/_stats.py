"""What is served, and how much of it, as values that can be subtracted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


def _difference(later: Any, earlier: Any) -> Any:
    """Numbers are subtracted, parts are compared one by one; anything else is the later one's."""
    if isinstance(later, bool) or earlier is None:
        return later
    if isinstance(later, int):
        return later - earlier
    if isinstance(later, tuple):
        return tuple(map(_difference, later, earlier))
    if dataclasses.is_dataclass(later) and not isinstance(later, type):
        names = [field.name for field in dataclasses.fields(later)]
        parts = {name: _difference(getattr(later, name), getattr(earlier, name)) for name in names}
        return dataclasses.replace(later, **parts)
    return later


@dataclass(frozen=True)
class DomainStats:
    """One domain. The counts are `None` in a process that does not count; bytes are those that were asked for."""

    name: str
    #: What serves: `malloc`, `pymalloc`, `mimalloc`, `the interpreter's own`.
    backend: str
    malloc: int | None = None
    calloc: int | None = None
    realloc: int | None = None
    free: int | None = None
    #: Calls that gave no block.
    failed: int | None = None
    live_blocks: int | None = None
    live_bytes: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class PoolStats:
    """The pools behind mem and obj, in the rows of pymalloc."""

    #: Now, at most, and in all; each is 1 MiB.
    arenas: int
    arenas_peak: int
    arenas_ever: int
    unused_pools: int
    blocks: int
    #: In blocks that are handed out, and in blocks that are not, by the sizes that the pools have.
    used_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class HeapStats:
    """mimalloc's heaps, in its rows."""

    blocks: int
    used_bytes: int
    committed_bytes: int
    reserved_bytes: int


@dataclass(frozen=True)
class GuardCoverage:
    """What guard pages cover, with `guard` among the words."""

    slots: int
    #: Live blocks between pages that fault.
    guarded: int
    #: Slots of long-lived blocks whose guard pages serve others now.
    retired: int
    #: Blocks that got no guard pages though it was their turn.
    passed_over: int


@dataclass(frozen=True)
class Stats:
    """What is served in this process, and how much of it."""

    #: The row, as `PYTHONMALLOC` names it.
    row: str
    #: The interpreter, as `3.13`.
    python: str | None
    domains: tuple[DomainStats, ...]
    pools: PoolStats | None
    heaps: HeapStats | None
    #: Resident memory of the whole process.
    resident_bytes: int | None
    guard: GuardCoverage | None = None

    def __sub__(self, earlier: Stats) -> Stats:
        """How much each number has grown since `earlier`."""
        grown: Stats = _difference(self, earlier)
        return grown

    def domain(self, name: str) -> DomainStats:
        """The domain `raw`, `mem` or `obj`."""
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise KeyError(name)

    @classmethod
    def from_report(cls, report: dict[str, Any]) -> Stats:
        """From what `pymem_stats_json` tells."""
        serves = str(report["serves"])
        row, _, parts = serves.partition(" (")
        backends = (part.partition(" ") for part in parts.rstrip(")").split(", "))
        calls: dict[str, dict[str, int]] = report.get("calls", {})
        fields = [field.name for field in dataclasses.fields(DomainStats)][2:]
        domains = tuple(
            DomainStats(name, backend, **{field: calls.get(name, {}).get(field) for field in fields})
            for name, _, backend in backends
        )
        numbers = report["stats"]
        pools, heaps = numbers.get("pymalloc"), numbers.get("mimalloc")
        return cls(
            row=row,
            python=report.get("python"),
            domains=domains,
            pools=_pools(pools) if pools else None,
            heaps=_heaps(heaps) if heaps else None,
            resident_bytes=numbers.get("resident_bytes"),
            guard=GuardCoverage(**report["guard"]) if "guard" in report else None,
        )

    def __str__(self) -> str:
        served = ", ".join(f"{domain.name} {domain.backend}" for domain in self.domains)
        lines = [f"{self.row} ({served})"]
        counted = [domain for domain in self.domains if domain.live_bytes is not None]
        lines.extend(f"{domain.name}: {domain.live_blocks} blocks, {domain.live_bytes} bytes" for domain in counted)
        if self.pools:
            lines.append(f"pools: {self.pools.arenas} arenas, {self.pools.blocks} blocks, {self.pools.used_bytes} bytes")
        if self.heaps:
            lines.append(f"heaps: {self.heaps.blocks} blocks, {self.heaps.used_bytes} bytes")
        if self.guard:
            lines.append(f"guard pages: {self.guard.guarded} of {self.guard.slots} slots")
        if self.resident_bytes is not None:
            lines.append(f"resident: {self.resident_bytes} bytes")
        return "\n".join(lines)


def _pools(pools: dict[str, Any]) -> PoolStats:
    classes = pools["classes"]
    return PoolStats(
        arenas=pools["arenas_current"],
        arenas_peak=pools["arenas_peak"],
        arenas_ever=pools["arenas_ever"],
        unused_pools=pools["unused_pools"],
        blocks=sum(kind["blocks_in_use"] for kind in classes),
        used_bytes=sum(kind["blocks_in_use"] * kind["size"] for kind in classes),
        free_bytes=sum(kind["blocks_available"] * kind["size"] for kind in classes),
    )


def _heaps(heaps: dict[str, Any]) -> HeapStats:
    return HeapStats(
        blocks=heaps["allocated_blocks"],
        used_bytes=heaps["allocated_bytes"],
        committed_bytes=heaps["committed_bytes"],
        reserved_bytes=heaps["reserved_bytes"],
    )
