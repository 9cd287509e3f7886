"""Judging in a real browser: by keyboard, over a broken network, without JavaScript, with hostile answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from alignloop.core.types import Message
from alignloop.feedback.people import fresh_link, invite
from alignloop.feedback.projects import ProjectConfig, create_project
from alignloop.feedback.queue import claim
from alignloop.feedback.tasks import create_tasks
from alignloop.feedback.wording import Wording
from alignloop.store import tables as t
from tests.web.test_web_text import payloads
from tests.web.work_site import CHROMIUM, Site, add_pair, fill, serve

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")
expect = sync_api.expect
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}")
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
KINDS = ("tutor", "ranks", "rate", "thumbs", "edit")
WIDE, PHONE, NARROW = (1440, 900), (390, 844), (320, 480)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serve(tmp_path) as running:
        fill(running.store)
        yield running


Visit = Callable[..., sync_api.Page]


@pytest.fixture
def visit(chromium: sync_api.Browser, site: Site) -> Iterator[Visit]:
    """Opens a new person's browser on the first card of a project. Script errors and dialogs fail the test."""
    contexts, wrong = [], []

    def open_page(
        handle: str = "Ada", project: str = "tutor", size=WIDE, role: str = "annotator", **settings
    ) -> sync_api.Page:
        viewport = {"width": size[0], "height": size[1]}
        context = chromium.new_context(viewport=viewport, reduced_motion="reduce", **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(site.link(handle, role, KINDS))
        page.get_by_label("How should we call you?").fill(handle)
        page.get_by_role("button", name="Come in").click()
        begin(page, site, project)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def begin(page: sync_api.Page, site: Site, project: str) -> None:
    page.goto(f"{site.url}/p/{project}/work")
    agree = page.get_by_label("I have read this and agree")
    if agree.count():
        agree.check()
    page.get_by_role("button", name="Start judging").click()
    page.wait_for_selector("#answer, .empty")
    page.wait_for_load_state()


def press(page: sync_api.Page, *keys: str) -> None:
    """Keys of which the last brings another card."""
    before = page.locator("#card").element_handle()
    for key in keys:
        page.keyboard.press(key)
    before.wait_for_element_state("hidden")
    page.wait_for_selector("#card")


def judgements(site: Site) -> list[t.Judgement]:
    with site.store.read() as session:
        return list(session.scalars(select(t.Judgement).order_by(t.Judgement.created_at, t.Judgement.id)))


def places(site: Site, project: str, handle: str = "Ada") -> tuple[int, ...]:
    """The slots of the card on screen, from the left."""
    card = claim(site.store, project, handle)
    assert card is not None  # the one on screen: a person holds one lease
    return card.shown_order


def test_twenty_comparisons_by_keyboard(visit: Visit, site: Site) -> None:
    page = visit()
    expected = []
    for k in range(20):
        key = "12345"[k % 5]
        left = 3 - int(key)
        expected.append(left if places(site, "tutor") == (0, 1) else -left)
        press(page, key, "Enter")
    rows = judgements(site)
    assert [r.strength for r in rows] == expected
    assert all(r.outcome == "answer" and r.ui == "web" for r in rows)
    assert all(r.wall_ms is not None and 0 <= r.active_ms <= r.wall_ms for r in rows)
    assert "20 today" in page.locator("#progress").inner_text()
    assert page.locator("#saved").inner_text() == "Saved ✓"
    assert page.evaluate("sessionStorage.getItem('alignloop-unsent:/p/tutor')") is None
    assert site.csp_reports == 0


def test_undo_skip_flag_note_and_both_good_by_keyboard(visit: Visit, site: Site) -> None:
    page = visit()
    first = page.locator('[name="seat"]').input_value()
    page.keyboard.press("n")
    page.keyboard.type("Because 1 b s of it")  # letters are letters while one types
    page.keyboard.press("Escape")
    press(page, "b", "g", "2", "Enter")
    press(page, "u")
    assert page.locator('[name="seat"]').input_value() == first
    assert "taken back" in page.locator("#notice").inner_text()
    press(page, "4", "Enter")
    press(page, "s", "3")
    press(page, "f", "2")
    answered, undone, again, skipped, flagged = judgements(site)
    assert (answered.comment, answered.both_good, answered.both_bad) == ("Because 1 b s of it", True, False)
    assert (undone.outcome, undone.supersedes_id) == ("undo", answered.id)
    assert again.revision == 3 and again.strength == -answered.strength
    assert (skipped.outcome, skipped.skip_reason) == ("skip", "not my subject")
    assert (flagged.outcome, flagged.skip_reason) == ("flag", "broken")


def test_one_key_answers_if_one_wants(visit: Visit, site: Site) -> None:
    page = visit()
    page.keyboard.press("2")
    assert judgements(site) == []
    page.get_by_label("One key answers").check()
    page.locator("h1").click()
    press(page, "2")
    press(page, "3")
    assert len(judgements(site)) == 2


def test_a_rewrite_of_the_better_answer_with_its_changes(visit: Visit, site: Site) -> None:
    page = visit()
    slot = places(site, "tutor")[1]
    page.keyboard.press("5")
    page.keyboard.press("e")
    area = page.locator("#rewrite-1")
    assert area.evaluate("e => e === document.activeElement")
    original = area.input_value()
    area.fill(original.replace("Quantum", "<b>Quantum</b>", 1) + " The end.")
    changes = page.locator(".answer[data-place='1'] .changes")
    assert changes.locator("ins").last.inner_text().strip() == "The end."
    assert changes.locator("b").count() == 0  # what is typed stays text
    page.keyboard.press("Escape")
    press(page, "Enter")
    with site.store.read() as session:
        written = session.get_one(t.Completion, session.scalars(select(t.Rewrite)).one().completion_id)
        parent = session.get_one(t.Completion, written.parent_completion_id)
        item = session.scalars(select(t.TaskItem).where(t.TaskItem.completion_id == parent.id)).one()
    assert written.text.endswith("The end.") and written.author == "human" and item.slot == slot


def test_criteria_by_keyboard(visit: Visit, site: Site) -> None:
    page = visit()
    sides = places(site, "tutor")
    press(page, "c", "r", "t", "Escape", "1", "Enter")
    with site.store.read() as session:
        rows = session.execute(
            select(t.Criterion.key, t.Rating.slot, t.Rating.value).join(
                t.Criterion, t.Criterion.id == t.Rating.criterion_id
            )
        ).all()
    turn = 1 if sides == (0, 1) else -1
    assert sorted(rows) == [("age", -1, -1 * turn), ("engagement", -1, -2 * turn)]


def test_ranking_by_keyboard_with_a_tie(visit: Visit, site: Site) -> None:
    page = visit(project="ranks")
    order = places(site, "ranks")
    page.keyboard.press("Enter")
    page.wait_for_selector("#notice .notice")
    assert "Move an answer" in page.locator("#notice").inner_text()
    # A B C D -> B A C D -> B A C=D
    press(page, "2", "Shift+ArrowUp", "4", "=", "Enter")
    (row,) = judgements(site)
    assert row.ranking == [[order[1]], [order[0]], sorted([order[2], order[3]], key=order.index)]


def test_ranking_by_buttons_and_an_order_that_is_right(visit: Visit, site: Site) -> None:
    page = visit(project="ranks")
    order = places(site, "ranks")
    down, up = (page.get_by_role("button", name=f"Move answer A {way}") for way in ("down", "up"))
    down.click()
    assert page.locator(".ranked .letter").all_inner_texts() == ["B", "A", "C", "D"]
    up.click()
    page.reload()
    page.get_by_text("The order is right as it stands").click()
    press(page, "Enter")
    assert judgements(site)[0].ranking == [[slot] for slot in order]


def test_thumbs_ratings_and_edits_by_keyboard(visit: Visit, site: Site) -> None:
    page = visit(project="thumbs")
    press(page, "ArrowDown", "Enter")
    assert judgements(site)[-1].thumb is False
    begin(page, site, "rate")
    press(page, "c", "r", "q", "Enter")
    with site.store.read() as session:
        assert sorted(session.scalars(select(t.Rating.value))) == [1, 4]
    begin(page, site, "edit")
    page.keyboard.press("e")
    page.keyboard.press("End")
    page.keyboard.type("Really. ")
    page.keyboard.press("Escape")
    press(page, "Enter")
    with site.store.read() as session:
        assert "Really. " in session.get_one(t.Completion, session.scalars(select(t.Rewrite)).one().completion_id).text


def test_an_answer_outlives_a_broken_network_and_is_stored_once(visit: Visit, site: Site) -> None:
    page = visit()
    seen: list[str] = []

    def break_down(route: sync_api.Route) -> None:
        seen.append(route.request.post_data or "")
        if len(seen) == 1:
            route.abort()
        elif len(seen) == 2:
            route.fulfill(status=503, body="busy")
        elif len(seen) == 3:
            route.fetch()  # the server stores it, and its answer is lost
            route.abort()
        else:
            route.continue_()

    page.route("**/answer", break_down)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#saved")).to_have_text("Not saved yet. Trying again…")
    assert page.evaluate("JSON.parse(sessionStorage.getItem('alignloop-unsent:/p/tutor')).values.strength") == "2"
    page.keyboard.press("5")  # nothing may change while it is under way
    expect(page.locator("#saved")).to_have_text("Saved ✓", timeout=20_000)
    assert len(seen) == 4 and len({dict(p.split("=", 1) for p in s.split("&"))["judgement_id"] for s in seen}) == 1
    assert len(judgements(site)) == 1
    assert "1 today" in page.locator("#progress").inner_text()


def test_an_answer_outlives_a_reload_and_a_lost_login(visit: Visit, site: Site) -> None:
    page = visit()
    page.route("**/answer", lambda route: route.abort())
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#saved")).to_have_text("Not saved yet. Trying again…")
    with site.store.write() as session:
        for row in session.scalars(select(t.WebSession)):
            row.revoked_at = 1
    page.unroute("**/answer")
    page.wait_for_url("**/login*", timeout=20_000)
    page.goto(f"{site.url}/link/{fresh_link(site.store, 'Ada', actor='system')}")
    page.get_by_role("button", name="Come in").click()
    page.goto(f"{site.url}/p/tutor/work")
    expect(page.locator("#saved")).to_have_text("Saved ✓", timeout=20_000)
    assert len(judgements(site)) == 1


def test_everything_works_without_javascript(visit: Visit, site: Site) -> None:
    page = visit(java_script_enabled=False)
    page.get_by_role("radio", name="Response A is slightly better").first.check()
    page.get_by_role("button", name="Submit").click()
    assert "1 today" in page.locator("#progress").inner_text()
    page.get_by_text("Skip…").click()
    page.get_by_role("button", name="I cannot tell").click()
    page.get_by_role("button", name="Undo").click()
    assert "taken back" in page.locator("#notice").inner_text()
    page.get_by_role("button", name="Submit").click()
    assert "Choose one of the options" in page.locator("#notice").inner_text()
    assert [j.outcome for j in judgements(site)] == ["answer", "skip", "undo"]


def test_a_view_of_ones_own(visit: Visit, site: Site) -> None:
    page = visit()
    body = page.locator(".answer-body").first
    page.keyboard.press("m")
    assert body.locator("pre.raw").is_visible() and not body.locator(".prose").is_visible()
    press(page, "3", "Enter")  # and it stays
    assert page.locator(".answer-body pre.raw").first.is_visible()
    page.keyboard.press("m")
    page.keyboard.press("d")
    assert page.evaluate("CSS.highlights.get('difference').size") > 0
    page.keyboard.press("d")
    assert page.evaluate("CSS.highlights.has('difference')") is False
    page.keyboard.press("p")
    assert page.locator("#prompt").get_attribute("open") is None
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    page.locator("header .menu summary").click()
    with page.expect_response("**/me/look"):
        page.get_by_role("button", name="Light or dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_have_no_serious_faults_of_accessibility(visit: Visit, site: Site, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    press(page, "1", "Enter")
    addresses = ["/", "/p/tutor/recent", "/p/tutor/guideline", "/p/tutor/work"]
    found = {}
    for address in addresses:
        page.goto(site.url + address)
        if address.endswith("work"):
            for key in ("c", "Escape", "n", "Escape", "e", "Escape", "s"):  # with everything unfolded
                page.keyboard.press(key)
        found[address] = serious(page)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    found["keys"] = serious(page)
    for project in KINDS[1:]:
        page.goto(f"{site.url}/p/{project}/work")
        found[f"{project} welcome"] = serious(page)
        begin(page, site, project)
        found[project] = serious(page)
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    page.goto(f"{site.url}/p/tutor/work")
    found["phone"] = serious(page)
    assert {place: faults for place, faults in found.items() if faults} == {}


def serious(page: sync_api.Page) -> list[str]:
    """What axe calls serious or critical, with the elements."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{v['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for v in result["violations"]
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


@pytest.mark.parametrize("size", [PHONE, NARROW, (720, 450)])  # the last: 200 % zoom of 1440 × 900
def test_small_screens_scroll_one_way_and_keep_the_options_in_reach(visit: Visit, site: Site, size) -> None:
    page = visit(size=size)
    for project in KINDS:
        page.goto(f"{site.url}/p/{project}/work")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, project
        begin(page, site, project) if project != "tutor" else None
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, project
        submit = page.get_by_role("button", name="Submit")
        if size == PHONE:  # in view wherever one has scrolled to
            box = submit.bounding_box()
            assert box is not None and box["y"] + box["height"] <= size[1]
        submit.scroll_into_view_if_needed()
        assert submit.is_visible()
    page.goto(f"{site.url}/p/tutor/work")
    page.locator(".tabs .chip").nth(1).click()
    assert (
        not page.locator('.answer[data-place="0"]').is_visible()
        and page.locator('.answer[data-place="1"]').is_visible()
    )


def test_right_to_left_text_stands_right(visit: Visit, site: Site) -> None:
    rows = add_pair(
        site.store, [Message("user", "مرحبا، ما هو الكيوبت؟")], ("الكيوبت مثل عملة تدور.", "A qubit spins.\n\nשלום לך.")
    )
    create_tasks(site.store, "tutor", [rows], overlap=1, priority=9.0)
    page = visit()
    right = page.evaluate(
        """() => [...document.querySelectorAll('.prompt-text .prose p, .answer-body .prose p')].map(p => {
             const range = document.createRange(); range.selectNodeContents(p);
             const text = range.getBoundingClientRect(), box = p.getBoundingClientRect();
             return [p.textContent.slice(0, 3), Math.abs(text.right - box.right) < 2];
           })"""
    )
    assert sorted(right) == sorted([["مرح", True], ["الك", True], ["A q", False], ["שלו", True]])


def test_hostile_answers_do_nothing(visit: Visit, site: Site) -> None:
    texts = payloads()
    create_project(site.store, "hostile", ProjectConfig(kind="rank", wording=Wording(question="Does anything run?")))
    groups = [texts[k : k + 9] for k in range(0, len(texts), 9)]
    groups = [group + ["harmless"] if len(group) == 1 else group for group in groups]
    rows = [add_pair(site.store, [Message("user", f"{k} {group[0]}")], group) for k, group in enumerate(groups)]
    create_tasks(site.store, "hostile", rows, overlap=1)
    outside: list[str] = []
    page = visit()
    invite(site.store, "hostile", "Ada", "annotator", actor="system")
    page.on("request", lambda request: None if request.url.startswith(site.url) else outside.append(request.url))
    begin(page, site, "hostile")
    shown = 0
    for _ in groups:
        items = page.locator(".ranked")
        shown += items.count()
        for action in page.locator('[data-action="unfold"]:visible').all():
            action.click()
        items.first.hover()
        page.keyboard.press("m")
        page.keyboard.press("m")
        stray = page.evaluate(
            """() => [...document.querySelectorAll('.fold *, .prompt-text *')].filter(e =>
                 e.id || e.getAttribute('style') ||
                 /^(script|style|iframe|object|embed|form|input|img|svg|link|meta|base|template)$/i.test(e.tagName) ||
                 [...e.attributes].some(a => /^on|^hx-(?!disable)|^data-/.test(a.name))).map(e => e.outerHTML)"""
        )
        assert stray == [] and page.evaluate("window.pwned") is None
        press(page, "1", "Shift+ArrowDown", "Enter")
    assert shown == len(texts) and page.locator(".empty").count() == 1
    page.goto(f"{site.url}/p/hostile/recent")
    assert page.locator(".recent tbody tr").count() == min(20, len(groups))
    assert page.evaluate("window.pwned") is None
    assert outside == [] and site.csp_reports == 0 and len(judgements(site)) == len(groups)
