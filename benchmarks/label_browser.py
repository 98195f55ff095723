"""The labeling page in a real Chromium, on a machine that does nothing else.

    python -m benchmarks.label_browser --out benchmarks/results/label_browser.json

Key to paint: from the browser's own time of a key until the second animation frame after it has
begun, with 9 replies of 8 KB in the rank step; at 60 frames a second this method cannot give less
than 17 to 33 ms. Cold load: from the start of the navigation, nothing cached, until the item is on
the page. Next item: from Ctrl+Enter until the next item is on the page. Weight: bytes of scripts
and styles that the task page loads, unpacked and as they were sent. Server and browser share the
machine.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Response, sync_playwright

from tercet.rundir import environment
from tests.browser.conftest import ARGS, chromium
from tests.browser.harness import ranking_set, sets_of
from tests.browser.live import Live
from tests.browser.measure import WATCH_SHOWN, percentile, press_all, pressed, rank_keys, shown
from tests.browser.pages import Task

GOALS = {
    "key_to_paint_p95_ms": 50,
    "longest_task_ms": 50,
    "cold_load_p95_ms": 500,
    "next_item_p95_ms": 100,
    "javascript_and_css_bytes": 80 * 1024,
}
SENTENCE = "Reply {j} to {name} says what it thinks, at some length, and then once more. "


def summary(values: Sequence[float]) -> dict[str, float]:
    shares = {"p50_ms": 0.5, "p95_ms": 0.95, "max_ms": 1.0}
    return {"count": len(values)} | {
        name: round(percentile(values, share), 1) for name, share in shares.items()
    }


def key_to_paint(live: Live, browser: Browser, repeats: int, size: int) -> dict[str, Any]:
    text = (SENTENCE * (size // len(SENTENCE) + 1))[:size]
    everybody = {"overlap_share": 1, "overlap_need": repeats, "ahead": 0}
    project = live.add("Keys", sets=[ranking_set("long", 9, text)], **everybody)
    times: list[float] = []
    long: list[float] = []
    for i in range(repeats):
        context = browser.new_context()
        task = live.task(context, live.account(f"keys {i}"), project)
        task.to_rank()
        task.page.wait_for_timeout(500)  # what loading left to do is not a key's
        more, tasks = press_all(task.page, rank_keys(90))
        times, long = times + more, long + tasks
        context.close()
    longest = round(max(long, default=0))
    return {**summary(times), "long_tasks": len(long), "longest_task_ms": longest}


def loading(live: Live, browser: Browser, repeats: int) -> dict[str, Any]:
    """Cold loads and next items."""
    project = live.add("Loads", sets=sets_of(repeats * 8, 6), rate=False)
    cold: list[float] = []
    waits: list[float] = []
    for i in range(repeats):
        context = browser.new_context()
        context.add_init_script(WATCH_SHOWN)
        page = live.page(context, live.account(f"loads {i}"))
        page.goto(f"{live.url}/task/{project}")
        page.wait_for_function("() => Object.keys(window.shown).length")
        assignment = page.evaluate("() => document.body.dataset.assignment")
        cold.append(shown(page, assignment)["changed"])
        task = Task(page, project)
        for _ in range(3):
            task.press(*"123456")
            task.submit()
            waits.append(shown(page, task.assignment)["changed"] - pressed(page)["timeStamp"])
        task.wait_saved()
        context.close()
    return {"cold_load": summary(cold), "next_item": summary(waits)}


def weight(live: Live, browser: Browser) -> dict[str, Any]:
    """What the task page loads."""
    project = live.add("Weight", sets=sets_of(1))
    sizes: dict[str, int] = {}
    sent: list[int] = []

    def note(response: Response) -> None:
        name = response.url.rpartition("/")[2]
        if name.endswith((".js", ".css")):
            sizes[name] = len(response.body())
            sent.append(response.request.sizes()["responseBodySize"])

    context = browser.new_context()
    context.on("response", note)
    live.task(context, live.account("weight"), project)
    context.close()
    return {
        "javascript_and_css_bytes": sum(sizes.values()),
        "sent_bytes": sum(sent),
        "files": dict(sorted(sizes.items(), key=lambda entry: -entry[1])),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="pages of 90 keys each")
    parser.add_argument("--loads", type=int, default=20, help="cold loads")
    parser.add_argument("--size", type=int, default=8192, help="characters of a reply")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        Live(Path(folder)) as live,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGS))
        keys = key_to_paint(live, browser, options.repeats, options.size)
        figures: dict[str, Any] = {
            "key_to_paint": keys,
            **loading(live, browser, options.loads),
            "weight": weight(live, browser),
        }
        version = browser.version
        browser.close()
    reached = {
        "key_to_paint_p95_ms": keys["p95_ms"],
        "longest_task_ms": keys["longest_task_ms"],
        "cold_load_p95_ms": figures["cold_load"]["p95_ms"],
        "next_item_p95_ms": figures["next_item"]["p95_ms"],
        "javascript_and_css_bytes": figures["weight"]["javascript_and_css_bytes"],
    }
    result = {
        **environment(None, ["python", "-m", "benchmarks.label_browser", *sys.argv[1:]], 1, {}),
        "chromium": version,
        "load_average_before": round(before, 2),
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "goals": {
            name: {"goal": goal, "measured": reached[name], "reached": reached[name] <= goal}
            for name, goal in GOALS.items()
        },
        **figures,
    }
    text = json.dumps(result, indent=2, default=str) + "\n"
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
