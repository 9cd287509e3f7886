"""Owners' pages in a real browser: faults of accessibility, small screens, live parts, and what JavaScript adds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignloop.demo.studio import SLUG
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.people import ensure_owner, fresh_link, invite
from alignloop.feedback.queue import claim, submit
from alignloop.store import Store
from tests.web.every_page import OUTSIDE, P, addresses
from tests.web.owner_site import campaign, snapshots
from tests.web.test_browser_work import PHONE, WIDE, serious, sync_api
from tests.web.work_site import CHROMIUM, Site, serve

expect = sync_api.expect
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign to copy."""
    path = tmp_path_factory.mktemp("campaign") / "studio.db"
    with Store(path) as store:
        ensure_owner(store)
        campaign(store, answers=150, tasks=110)
        snapshots(store, path.parent / "snapshots")
    return path


@pytest.fixture
def site(filled: Path, tmp_path: Path) -> Iterator[Site]:
    shutil.copy(filled, tmp_path / "studio.db")
    with serve(tmp_path) as running:
        yield running


Visit = Callable[..., sync_api.Page]


@pytest.fixture
def visit(chromium: sync_api.Browser, site: Site) -> Iterator[Visit]:
    """Opens a page as the owner of the store; None: a browser of nobody. Script errors and blocked content fail."""
    contexts, wrong = [], []

    def open_page(path: str | None, size=WIDE, **settings) -> sync_api.Page:
        viewport = {"width": size[0], "height": size[1]}
        context = chromium.new_context(viewport=viewport, reduced_motion="reduce", **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if path is not None:
            page.goto(f"{site.url}/link/{fresh_link(site.store, 'owner', actor='system', purpose='login')}")
            page.get_by_role("button", name="Come in").click()
            page.goto(site.url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == [] and site.csp_reports == 0


def computed(site: Site) -> None:
    for what in ("activity", "report", "preferred", "leaderboard"):
        assert site.app.state.figures.show(what, SLUG, patience=60).value is not None


@pytest.mark.parametrize("part", [0, 1])  # two halves, so that neither takes long
def test_every_page_has_no_serious_fault_and_scrolls_one_way(visit: Visit, site: Site, part: int) -> None:
    computed(site)
    token = invite(site.store, SLUG, "nora", "annotator", actor="owner")
    assert token is not None
    inside, outside = visit("/projects"), visit(None)
    found = {}
    for name, address in [*addresses(site.store, token).items(), ("error", "/nowhere")][part::2]:
        page = outside if name in OUTSIDE else inside
        page.goto(site.url + address)
        page.evaluate("document.querySelectorAll('main details').forEach(fold => fold.open = true)")
        look(page, WIDE, "light")
        faults = serious(page)
        look(page, PHONE, "dark")
        faults += serious(page)
        over = {width: overflow(page, width) for width in (PHONE[0], 320, WIDE[0])}
        if faults or any(over.values()) or page.locator("h1").count() != 1 or page.url != site.url + address:
            found[name] = (page.url, over, faults)
    assert found == {}


def look(page: sync_api.Page, size: tuple[int, int], scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": size[0], "height": size[1]})


def overflow(page: sync_api.Page, width: int) -> int:
    """Pixels by which a page is broader than a screen."""
    page.set_viewport_size({"width": width, "height": 800})
    return max(0, page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_the_live_part_follows_and_can_be_paused(visit: Visit, site: Site) -> None:
    computed(site)
    page = visit(P)
    poll = """() => { const live = document.querySelector("#live");
        htmx.ajax("GET", live.getAttribute("hx-get"), {source: live, target: live, swap: "outerHTML"}); }"""
    before = page.locator(".stat-value").nth(3).inner_text()
    page.locator("#days-table summary").click()
    page.locator("h1").click()
    submit(site.store, claim(site.store, SLUG, "ada"), Verdict(1))
    site.app.state.figures.show("activity", SLUG, patience=60)
    page.evaluate(poll)
    expect(page.locator(".stat-value").nth(3)).to_have_text(str(int(before) + 1))
    expect(page.locator("#days-table")).to_have_attribute("open", "")  # what was unfolded stays so
    button = page.get_by_role("button", name="Live: pause")
    button.click()
    expect(page.locator("[data-live]")).to_have_attribute("aria-pressed", "false")
    page.locator("h1").click()
    submit(site.store, claim(site.store, SLUG, "ada"), Verdict(1))
    site.app.state.figures.show("activity", SLUG, patience=60)
    page.evaluate(poll)
    page.wait_for_timeout(400)
    assert page.locator(".stat-value").nth(3).inner_text() == str(int(before) + 1)
    assert page.locator("[data-live]").inner_text() == "Paused: start again"


def test_a_preview_is_shown_beside_what_is_typed(visit: Visit, site: Site) -> None:
    page = visit(f"{P}/settings/guideline")
    page.get_by_label("Guideline (Markdown)").fill("Be **brief**.\n\n<script>alert(1)</script>")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview")).to_contain_text("Be brief.")  # until then it shows the version in force
    assert page.locator("#preview strong").all_inner_texts() == ["brief"]
    assert page.locator("#preview script").count() == 0
    page.on("dialog", lambda dialog: dialog.dismiss())
    with page.expect_event("dialog") as asked:
        page.evaluate("location.href = '/'")
    assert asked.value.type == "beforeunload" and "settings/guideline" in page.url
    page.get_by_role("button", name="Publish this version").click()
    expect(page.locator(".notice.good")).to_have_text("Saved.")
    assert page.get_by_text("Version 3").count() == 1


def test_a_link_is_copied(visit: Visit, site: Site) -> None:
    page = visit(f"{P}/people", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Name they log in with").fill("nina")
    page.get_by_role("button", name="Make a link").click()
    assert serious(page) == []
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied ✓")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#secret").inner_text()


def test_everything_works_without_javascript(visit: Visit, site: Site) -> None:
    computed(site)
    page = visit(f"{P}/judgements", java_script_enabled=False)
    page.get_by_label("Words in the prompt, an answer or a note").fill("children")
    page.get_by_label("Outcome").select_option("flag")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tbody tr").first).to_contain_text("not for children")
    page.locator("tbody tr .clip").first.click()
    page.get_by_label("Why").fill("it is fine")
    page.get_by_role("button", name="Keep the votes it has").click()
    expect(page.locator(".notice.good")).to_have_text("Kept with the votes it has.")
    page.goto(f"{site.url}{P}/quality")
    assert page.locator(".plot").count() >= 6
    page.goto(f"{site.url}{P}/data")
    page.get_by_label("What is it for?").fill("a check")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "tutor-pairs.jsonl"
