"""What a newcomer does first: the README's command, the printed link, one item ranked."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from tercet.label import tables
from tercet.label.store import Store

pytestmark = pytest.mark.browser

EXAMPLES = Path(__file__).parents[2] / "examples" / "candidates.jsonl"


def test_the_first_item_is_ranked_within_a_minute(
    tmp_path: Path, new_context: Callable[..., BrowserContext]
) -> None:
    shutil.copy(EXAMPLES, tmp_path)
    source = tmp_path / EXAMPLES.name
    began = time.monotonic()
    command = [sys.executable, "-m", "tercet", "label", "serve", str(source), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        lines = iter(server.stdout.readline, "")
        link = next(line.split()[1] for line in lines if line.startswith("labeler "))
        page = new_context().new_page()
        page.goto(link)
        page.get_by_role("button", name="Start").click()
        page.get_by_role("link", name="Start", exact=True).click()
        page.wait_for_selector("body[data-state=rate], body[data-state=compare]")
        if page.get_attribute("body", "data-state") == "rate":
            page.get_by_role("button", name="Rank", exact=True).click()
            page.wait_for_selector("body[data-state=rank]")
            for rank in range(page.locator("article").count()):
                page.keyboard.press(str(rank + 1))
        else:
            page.keyboard.press("1")
        page.wait_for_timeout(500)  # in its first 0.4 s an item takes no Submit
        page.click("#submit")
        page.wait_for_selector("#save[data-state=saved]")
        seconds = time.monotonic() - began
    finally:
        server.terminate()
        server.communicate(timeout=30)
    with Store.open(source.with_suffix(".sqlite")) as store:
        assert len(store.read(lambda conn: conn.execute(tables.annotation.select()).all())) == 1
    print(f"first ranked item after {seconds:.1f} s")
    assert seconds < 60
