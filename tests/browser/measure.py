"""Times as the browser itself measures them."""

import math
from collections.abc import Sequence
from typing import Any

from playwright.sync_api import Page

# From the key (the browser's own time of the event) until the second frame after it has begun: the
# frame that the key changed is then on the screen. Two frames of 60 a second are 17 to 33 ms.
WATCH_KEYS = """() => {
  window.painted = [];
  window.long = [];
  addEventListener("keydown", ({ key, timeStamp }) => {
    if (key === "Shift") return;
    requestAnimationFrame(() => requestAnimationFrame(() =>
      painted.push(performance.now() - timeStamp)));
  }, { capture: true });
  new PerformanceObserver((list) => long.push(...list.getEntries().map((e) => e.duration)))
    .observe({ entryTypes: ["longtask"] });
}"""

# When the page showed an assignment, in ms since its navigation began; by id.
WATCH_SHOWN = """
window.shown = {};
document.addEventListener("DOMContentLoaded", () => {
  const look = () => {
    const { assignment, state } = document.body.dataset;
    if (!assignment || state === "loading" || window.shown[assignment]) return;
    const at = window.shown[assignment] = { changed: performance.now() };
    requestAnimationFrame(() => requestAnimationFrame(() => { at.painted = performance.now(); }));
  };
  new MutationObserver(look).observe(document.body, { attributes: true });
  addEventListener("keydown", ({ key, timeStamp }) => { window.key = { key, timeStamp }; },
    { capture: true });
});
"""


def press_all(page: Page, keys: Sequence[str]) -> tuple[list[float], list[float]]:
    """Presses the keys one after the other; (ms from each to its paint, long tasks in ms)."""
    page.evaluate(WATCH_KEYS)
    for i, key in enumerate(keys):
        page.keyboard.press(key)
        page.wait_for_function(f"() => painted.length > {i}")
    page.wait_for_timeout(100)  # long tasks are told a little later
    return page.evaluate("() => painted"), page.evaluate("() => long")


def rank_keys(count: int, k: int = 9) -> list[str]:
    """What somebody presses who ranks `k` replies, takes it back, and so on."""
    digits = [str(i) for i in range(1, k + 1)]
    moves = ["a", "Shift+ArrowDown", "e", "=", "-", "z", "i", "Shift+ArrowUp", "j", "k"]
    keys = [*digits, *moves, *(key for letter in "abcdefghi"[:k] for key in (letter, "0"))]
    return (keys * (count // len(keys) + 1))[:count]


def shown(page: Page, assignment: str) -> dict[str, float]:
    """`changed` and `painted`, in ms since the navigation began."""
    page.wait_for_function("(id) => window.shown[id]?.painted", arg=assignment)
    return page.evaluate("(id) => window.shown[id]", assignment)


def pressed(page: Page) -> Any:
    """The last key and when, in ms since the navigation began."""
    return page.evaluate("() => window.key")


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]
