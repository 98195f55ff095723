"""Request counts and times in Prometheus' text format."""

import os
from bisect import bisect_left
from collections.abc import Mapping

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH")
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)  # seconds


class Metrics:
    """Counts of one process; with several workers each scrape meets one of them, named by `pid`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], list[int]] = {}
        self._seconds: dict[tuple[str, str, int], float] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answered request. `route` is the pattern, never the path: no ids."""
        key = (method if method in METHODS else "other", route, status)
        counts = self._counts.setdefault(key, [0] * (len(BOUNDS) + 1))
        counts[bisect_left(BOUNDS, seconds)] += 1
        self._seconds[key] = self._seconds.get(key, 0.0) + seconds

    def text(self, counters: Mapping[str, float]) -> str:
        """All of it as a scrape, and the store's own figures as `tercet_store_<name>`."""
        name, pid = "tercet_request_seconds", os.getpid()
        lines = [f"# HELP {name} Time to answer a request.", f"# TYPE {name} histogram"]
        for (method, route, status), counts in sorted(self._counts.items()):
            labels = f'method="{method}",route="{route}",status="{status}",pid="{pid}"'
            total = 0
            for bound, count in zip([*map(str, BOUNDS), "+Inf"], counts, strict=True):
                total += count
                lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
            lines.append(f"{name}_sum{{{labels}}} {self._seconds[method, route, status]:.6f}")
            lines.append(f"{name}_count{{{labels}}} {total}")
        for counter, value in counters.items():
            lines.append(f'tercet_store_{counter}{{pid="{pid}"}} {value}')
        return "\n".join(lines) + "\n"
