"""The numbers of `stats()` as text for a scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._library import stats

if TYPE_CHECKING:
    from ._stats import Stats

_CALLS = ("malloc", "calloc", "realloc", "free")


def prometheus() -> str:
    """What serves this process and how much of it, in Prometheus' text format.

    Serve it at `/metrics`, with `Content-Type: text/plain; version=0.0.4`. Metrics of a domain are there in a process that
    counts (`run --limit 0`).

    >>> import pymem_domains
    >>> text = prometheus() if pymem_domains.active() else "pymem_info 1"
    >>> "pymem_info" in text
    True
    """
    return text_of(stats())


def text_of(stats: Stats) -> str:
    """`stats` in Prometheus' text format."""
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, samples: dict[str, int | None]) -> None:
        known = {labels: value for labels, value in samples.items() if value is not None}
        if known:
            lines.extend([f"# HELP pymem_{name} {about}", f"# TYPE pymem_{name} {kind}"])
            lines.extend(f"pymem_{name}{labels} {value}" for labels, value in known.items())

    backends = "".join(f',{domain.name}="{domain.backend}"' for domain in stats.domains)
    metric("info", "gauge", "What serves each domain.", {f'{{row="{stats.row}"{backends}}}': 1})
    calls = {f'{{domain="{domain.name}",call="{call}"}}': getattr(domain, call) for domain in stats.domains for call in _CALLS}
    metric("calls_total", "counter", "Calls of each function of a domain.", calls)
    for name, kind, about in (
        ("failed", "counter", "Calls that gave no block."),
        ("live_blocks", "gauge", "Blocks that are handed out."),
        ("live_bytes", "gauge", "Bytes asked for in blocks that are handed out."),
        ("peak_bytes", "gauge", "The most bytes that were live at a time."),
    ):
        samples = {f'{{domain="{domain.name}"}}': getattr(domain, name) for domain in stats.domains}
        metric(name + "_total" * (kind == "counter"), kind, about, samples)
    if stats.pools:
        metric("arenas", "gauge", "Arenas of 1 MiB behind the pools.", {"": stats.pools.arenas})
        metric("pool_blocks", "gauge", "Blocks of the pools that are handed out.", {"": stats.pools.blocks})
        metric(
            "pool_bytes",
            "gauge",
            "Bytes of the pools by use.",
            {'{use="used"}': stats.pools.used_bytes, '{use="free"}': stats.pools.free_bytes},
        )
    if stats.heaps:
        metric("heap_blocks", "gauge", "Blocks of the heaps that are handed out.", {"": stats.heaps.blocks})
        metric(
            "heap_bytes",
            "gauge",
            "Bytes of the heaps by use.",
            {
                '{use="used"}': stats.heaps.used_bytes,
                '{use="committed"}': stats.heaps.committed_bytes,
                '{use="reserved"}': stats.heaps.reserved_bytes,
            },
        )
    metric("resident_bytes", "gauge", "Resident memory of the process.", {"": stats.resident_bytes})
    return "\n".join([*lines, ""])
