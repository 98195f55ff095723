"""The administrators' pages in a real Chromium: no policy violation, nothing beyond the width."""

import pytest

from tests.browser.harness import sets_of

pytestmark = pytest.mark.browser

WIDTHS = (320, 800, 1440)


@pytest.fixture
def admin(serve, new_context):
    served = serve(sets_of(6))
    page = new_context().new_page()
    page.goto(served.admin)
    page.get_by_role("button").last.click()
    page.wait_for_url("**/admin")
    return page


def test_every_page_fits_every_width_in_both_themes(admin):
    admin.get_by_role("link", name="Manage").click()
    project = admin.url
    item = admin.locator("#items tbody a").first.get_attribute("href")
    for path in ("/admin", project, f"{project}/quality", item, "/admin/people", "/admin/verify"):
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                admin.emulate_media(color_scheme=scheme)
                admin.set_viewport_size({"width": width, "height": 800})
                admin.goto(path if "://" in path else "/".join(project.split("/")[:3]) + path)
                assert admin.evaluate("document.documentElement.scrollWidth") <= width, path
                assert admin.locator("h1").count() == 1


def test_a_person_is_invited_and_paused(admin):
    admin.get_by_role("link", name="People").click()
    admin.get_by_label("Name or alias").fill("zoe")
    admin.get_by_role("button", name="Make a link").click()
    assert "/join#" in admin.locator("#link").input_value()
    admin.get_by_role("button", name="Pause: zoe").click()
    assert admin.get_by_role("row", name="zoe").get_by_text("paused").is_visible()


def test_pausing_saving_guidelines_and_holding_an_item(admin):
    admin.get_by_role("link", name="Manage").click()
    admin.get_by_role("button", name="Pause").click()
    assert admin.get_by_role("button", name="Resume").is_visible()
    admin.get_by_label("Text, in Markdown").fill("# Be fair\n\nRead all replies.")
    admin.get_by_role("button", name="Save as a new version").click()
    assert "Be fair" in admin.get_by_label("Text, in Markdown").input_value()
    admin.locator("#items tbody a").first.click()
    admin.get_by_label("Reason").fill("looks odd")
    admin.get_by_role("button", name="Hold").click()
    assert admin.get_by_text("looks odd").first.is_visible()
    admin.get_by_role("button", name="Release").click()
    assert admin.get_by_role("button", name="Hold").is_visible()
