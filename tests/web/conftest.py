"""A studio with one person of each role, and browsers that are logged in as them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from alignloop.feedback.people import invite
from alignloop.feedback.projects import ProjectConfig, add_annotators, create_project
from alignloop.feedback.sessions import open_session
from alignloop.feedback.tokens import api_token
from alignloop.store import Store
from alignloop.store.database import parse_url
from alignloop.web.access import cookie_name
from alignloop.web.app import create_app
from alignloop.web.settings import StudioSettings
from tests.web.work_site import ARGUMENTS, CHROMIUM

ORIGIN = "http://127.0.0.1:8321"
ROLES = ("annotator", "reviewer", "curator", "owner")


class Browser(TestClient):
    """A browser of one person: it sends what browsers send, and `csrf` with every form."""

    def __init__(self, app: FastAPI, address: str = "203.0.113.7"):
        origin = app.state.settings.origin
        quiet = {"follow_redirects": False, "raise_server_exceptions": False}
        super().__init__(app, base_url=origin, client=(address, 50_000), **quiet)
        self.headers["sec-fetch-site"] = "same-origin"
        self.csrf = ""

    def login(self, store: Store, annotator_id: str) -> Browser:
        """Log in without a form."""
        cookie, self.csrf = open_session(store, annotator_id, "203.0.113.7", "test browser", how="login")
        self.cookies.set(cookie_name(str(self.base_url).startswith("https")), cookie)
        return self

    def submit(self, path: str, **form: Any) -> Any:
        """Post a form, as a page of the studio would."""
        return self.post(path, data={"csrf": self.csrf, **form})


@dataclass
class Studio:
    """An app over a store. `ids` are people's row ids by handle."""

    app: FastAPI
    store: Store
    ids: dict[str, str]

    def browser(self, handle: str | None = None) -> Browser:
        """A fresh browser, of this person if one is named."""
        fresh = Browser(self.app)
        return fresh if handle is None else fresh.login(self.store, self.ids[handle])

    def bearer(self, handle: str, **scope: Any) -> dict[str, str]:
        """The header of a script with an API token of this person."""
        return {"Authorization": f"Bearer {api_token(self.store, self.ids[handle], scope)}"}


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A database to copy, and the row ids of its people by handle.

    Projects "tutor" and "other"; people named after their role in "tutor", "stranger" who is owner of "other" only, and
    "root", an owner of the store.
    """
    path = tmp_path_factory.mktemp("house") / "studio.db"
    with Store(path) as store:
        for slug in ("tutor", "other"):
            create_project(store, slug, ProjectConfig(seed=1))
        people = [*ROLES, "stranger"]
        ids = dict(zip(people, add_annotators(store, people)))
        (ids["root"],) = add_annotators(store, ["root"], role="owner")
        for role in ROLES:
            invite(store, "tutor", role, role, actor="root")
        invite(store, "other", "stranger", "owner", actor="root")
    return path, ids


@pytest.fixture
def settings(tmp_path: Path) -> StudioSettings:
    return StudioSettings(store_url=f"sqlite:///{tmp_path / 'studio.db'}")


@pytest.fixture
def make_studio(house: tuple[Path, dict[str, str]]) -> Iterator[Callable[[StudioSettings], Studio]]:
    """Opens studios over copies of the house; their stores are closed at the end."""
    opened: list[Store] = []
    path, ids = house

    def make(settings: StudioSettings) -> Studio:
        shutil.copy(path, str(parse_url(settings.store_url).database))
        opened.append(Store(settings.store_url))
        return Studio(create_app(settings, opened[-1]), opened[-1], ids)

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def studio(make_studio: Callable[[StudioSettings], Studio], settings: StudioSettings) -> Studio:
    return make_studio(settings)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser, where the machine has one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")
    with sync_api.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


def field(page: str, name: str) -> str:
    """The value of an input of a page."""
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found is not None, f"no field {name}"
    return found.group(1)
