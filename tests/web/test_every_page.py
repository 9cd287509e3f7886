"""The list of pages against the application: none is missing from the sweeps, from the pictures or from the docs."""

from __future__ import annotations

import re
from pathlib import Path

from alignloop import web
from tests.web.conftest import Studio
from tests.web.every_page import NO_PAGES, OUTSIDE, PAGES
from tests.web.test_web_access import routes

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEMPLATES = Path(web.__file__).parent / "templates"


def test_every_route_that_shows_a_page_is_in_the_list(studio: Studio) -> None:
    shown = {route.path for route in routes(studio.app) if "GET" in route.methods and route.path[:5] != "/api/"}
    assert shown - NO_PAGES == set(PAGES), "add the page, with an address, to tests/web/every_page.py"
    assert shown >= NO_PAGES
    names = [name for name, _ in PAGES.values()]
    assert len(set(names)) == len(names) and set(OUTSIDE) < set(names)


def test_addresses_lead_to_their_routes(studio: Studio) -> None:
    by_path = {route.path: route for route in routes(studio.app) if "GET" in route.methods}
    for path, (_, address) in PAGES.items():
        assert by_path[path].path_regex.match(address.partition("?")[0]), address


def test_every_page_has_pictures_that_the_docs_show() -> None:
    text = (DOCS / "studio.md").read_text(encoding="utf-8") + (DOCS / "judging.md").read_text(encoding="utf-8")
    pictures = sorted((DOCS / "screenshots").iterdir())
    names = {picture.name for picture in pictures}
    wanted = {f"{name}{look}.webp" for name, _ in PAGES.values() for look in ("", "-phone")}
    assert wanted <= names, "scripts/make_screenshots.py makes them"
    assert not [name for name, _ in PAGES.values() if f"screenshots/{name}.webp" not in text]
    assert sum(picture.stat().st_size for picture in pictures) < 1_600_000


def test_no_page_shows_a_macro_instead_of_a_value() -> None:
    """A value that has the name of an imported macro is hidden by it, and the page then shows the macro itself."""
    found = []
    for path in sorted(TEMPLATES.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        lists = re.findall(r"{% from \S+ import ([\w, ]+?)(?: with context)? %}", text)
        macros = {name.strip() for names in lists for name in names.split(",")}
        found += [(path.name, name) for name in re.findall(r"{{-? *(\w+) *[|}]", text) if name in macros]
    assert not found
