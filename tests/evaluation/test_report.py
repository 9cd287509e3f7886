"""report.json keeps its promise; report.html is whole, escaped and needs nothing from outside."""

import doctest
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from alignloop.core.errors import DataError
from alignloop.evaluation import report as report_module
from alignloop.evaluation import tables
from alignloop.evaluation.glossary import EXPLANATIONS, explain
from alignloop.evaluation.report import read_report, render_html, write_report
from alignloop.evaluation.schema import PROMISED, jsonable, parse_report
from tests.evaluation.fake_report import PROMPTS, full, generic, minimal

VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects what a browser would act on, and checks that tags are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.loads, self.headings, self.tags = [], [], [], [], set()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.loads += [attrs[a] for a in ("src", "href", "xlink:href", "action", "data") if attrs.get(a)]
        self.loads += re.findall(r"url\(([^)]*)\)", " ".join(v or "" for v in attrs.values()))
        assert not any(a.startswith("on") for a in attrs)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full_page():
    return render_html(full())


@pytest.mark.parametrize("name", ["full", "minimal", "generic"])
def test_page_is_self_contained_and_well_formed(name, full_page):
    html = full_page if name == "full" else render_html({"minimal": minimal, "generic": generic}[name]())
    page = Page(html)
    assert all(target.startswith(("#", "data:,")) for target in page.loads), page.loads
    assert not re.search(r"https?://|@import|<script", html)
    assert len(page.ids) == len(set(page.ids))
    assert {t[1:] for t in page.loads if t.startswith("#")} <= set(page.ids)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:]))
    assert html.count('role="img"') == html.count("aria-label=") - html.count("<nav aria-label") - html.count(
        '<ul class="legend" aria-label'
    )


def test_full_page_shows_every_section(full_page):
    for section in ("story", "texts", "figures", "distance", "votes", "training", "lineage", "reproduce"):
        assert f'<section id="{section}"' in full_page
    for words in ("4.23", "6.57", "Krippendorff", "alignloop demo --out runs/tutor", "method: sft", "2.13.0"):
        assert words in full_page
    assert all(p in full_page for p in PROMPTS)
    assert "var(--m3)" in full_page and "#0a0b" not in full_page  # every placeholder colour became the page's


def test_missing_sections_are_left_out():
    html = render_html(generic())
    for section in ("votes", "lineage"):
        assert f'<section id="{section}"' not in html
    assert "VADER compound" in html and "happy" in html
    bare = render_html({})
    Page(bare)
    assert 'id="story"' not in bare


def test_what_a_model_wrote_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    data = generic() | {
        "title": evil,
        "command": evil,
        "config": evil,
        "notes": [evil],
        "versions": {evil: evil},
        "reward": {evil: {"mean": 1.0, "se": 0.1, "parts": {evil: 1.0, "b": 2.0}}, "$x$ b": {"mean": 2.0, "se": 0.1}},
        "models": [],
        "kl": {evil: {"mean": 1.0}},
        "samples": {evil: {evil: evil}},
        "samples_marked": {"p" + evil: {evil: [[evil, evil]]}},
        "curves": {evil: {evil: [[0, 1.0], [1, 2.0]]}},
        "reward_samples": {evil: [1.0, 2.0]},
        "annotators": {"n": 1, "table": [{evil: evil}]},
        "win_rate": {f"{evil}_vs_b": {"rate": 0.5, "ci": [0.4, 0.6]}},
        "lineage": {"nodes": [{"id": "a", "label": evil, "kind": evil}], "edges": []},
        "overoptimisation": {evil: [[0, 1.0, 1.0, 0.0], [1, 2.0, 2.0, 1.0], [2, 3.0, 1.0, 2.0]]},
    }
    path = write_report(data, tmp_path, promised=False)
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "script" not in Page(html).tags
    assert "&lt;script&gt;" in html


def test_json_is_sorted_complete_and_renders_the_same_page(tmp_path):
    path = write_report(full(), tmp_path / "deep" / "er")
    assert path == tmp_path / "deep" / "er" / "report.html"
    text = (path.parent / "report.json").read_text(encoding="utf-8")
    loaded = json.loads(text)
    assert list(loaded) == sorted(loaded)
    assert set(PROMISED) <= set(loaded)
    assert loaded["gold"]["ppo"] == full()["gold"]["ppo"]
    assert loaded["models"] == ["base", "sft", "dpo", "ppo"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json"]  # no temporary left
    again = render_html(read_report(path.parent / "report.json"))
    assert _sections(again) == _sections(path.read_text(encoding="utf-8"))


def _sections(html):
    """What does not depend on the order of a mapping in the file: the story and every number of the tables."""
    return re.findall(r"<p>([^<]*)</p></li>", html), sorted(re.findall(r"<td[^>]*>([^<]*)</td>", html))


def test_numpy_tuples_and_nan_become_plain_json(tmp_path):
    data = minimal()
    data["gold"]["base"]["se"] = np.float32("nan")
    data["reward_model"]["accuracy"] = np.float64(0.75)
    data["extra"] = {"kept": np.arange(3), "inf": float("inf"), "path": Path("a/b")}
    write_report(data, tmp_path)
    loaded = read_report(tmp_path / "report.json")
    assert loaded["gold"]["base"]["se"] is None
    assert loaded["extra"] == {"kept": [0, 1, 2], "inf": None, "path": "a/b"}
    with pytest.raises(DataError, match="object cannot be written"):
        jsonable({"x": object()})


@pytest.mark.parametrize("section", sorted(PROMISED))
def test_a_missing_promised_section_is_named(section, tmp_path):
    data = minimal()
    del data[section]
    with pytest.raises(DataError, match=f"report.json, field '{section}'.*promised"):
        write_report(data, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "gold.ppo",
        "kl.dpo",
        "reward_model.bayes_accuracy",
        "annotators.alpha",
        "win_rate.sft_vs_base",
        "readability.sft",
    ],
)
def test_a_missing_promised_key_is_named(path, tmp_path):
    data = minimal()
    section, key = path.split(".")
    del data[section][key]
    with pytest.raises(DataError, match=re.escape(f"field '{path}'")):
        write_report(data, tmp_path)
    write_report(data, tmp_path, promised=False)  # a run of one's own need not have it


def test_a_misspelt_section_and_wrong_types_are_told(tmp_path):
    data = minimal()
    data["win_rates"] = data.pop("win_rate")
    with pytest.raises(DataError, match="did you mean 'win_rates'"):
        write_report(data, tmp_path)
    with pytest.raises(DataError, match=r"field 'gold\.base\.mean'"):
        parse_report({"gold": {"base": {"mean": "high"}}})
    bad = minimal()
    del bad["samples"][PROMPTS[0]]["dpo"]
    with pytest.raises(DataError, match="answer of dpo"):
        write_report(bad, tmp_path)
    bad = minimal()
    bad["gold"]["dpo"]["parts"] = {}
    with pytest.raises(DataError, match=r"gold\.dpo.*parts"):
        write_report(bad, tmp_path)


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    write_report(minimal(), tmp_path)
    before = (tmp_path / "report.json").read_bytes()

    def full_disk(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError):
        write_report(full(), tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "report.json").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_reports_are_reproducible():
    assert render_html(full()) == render_html(full())


def test_doctests_and_glossary():
    assert doctest.testmod(report_module).failed == doctest.testmod(tables).failed == 0
    for name, entry in EXPLANATIONS.items():
        assert entry.text.endswith("."), name
        assert not entry.normal.endswith("."), name
        assert "\n" not in entry.text
    assert explain("eval_accuracy").text.startswith("On unseen rows: share")
    assert explain("my_metric") is None


def test_every_metric_that_training_logs_is_explained():
    source = Path(report_module.__file__).resolve().parents[1]
    named = r"\"((?:objective|policy|val|loss|rewards|logps|completions|sampling|critic)/[a-z_0-9/]+)\""
    found = set()
    for folder in ("algorithms", "training"):
        for file in (source / folder).rglob("*.py"):
            found |= set(re.findall(named, file.read_text(encoding="utf-8")))
    assert sorted(name for name in found if explain(name) is None) == []
    # TRL's names that this project also logs.
    for name in ("loss", "grad_norm", "learning_rate", "num_tokens", "entropy", "mean_token_accuracy", "accuracy"):
        assert explain(name) is not None
