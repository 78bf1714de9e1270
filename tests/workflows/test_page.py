"""Claims about the page: whatever a table holds is shown as text, nothing is fetched, and a browser shows all of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from workflows.evaluation_pictures import column_bars, gap_waterfall, latent_bars, marginal_panels, score_histogram
from workflows.page import Block, Table, html_page

BROWSER = next((found for found in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if found), None)
NASTY = "<script>alert(\"x\")</script> & 'quoted'"


class Elements(HTMLParser):
    """Which elements and attributes a page has, and that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    rng = np.random.default_rng(0)
    elbo = rng.normal(-30, 4, 500)
    columns = {NASTY: -3.0, "age": -1.5, "constant": 0.0}
    numbers = {"quantiles": [1.0, 2.0, 3.0]}
    words = {"frequencies": [0.7, 0.3], "categories": [NASTY, "other"]}
    figures = [
        (score_histogram(elbo, elbo + 1), "scores"),
        (score_histogram(np.zeros(3), np.zeros(3)), "rows that all score the same"),
        (column_bars(columns, {name: value - 1 for name, value in columns.items()}), "columns"),
        (column_bars(columns, None), "columns alone"),
        (latent_bars([0.5, 2.0], [0.1, 1.0]), "latents"),
        (latent_bars(None, [0.1, 1.0]), "latents under a prior without parts"),
        (gap_waterfall(-31.0, 0.5, 0.2, -30.3), "gaps"),
        (gap_waterfall(-31.0, 0.0, 0.0, -31.0), "no gaps"),
        (marginal_panels({"age": numbers, "work": words, "unknown": {}}, {"age": {}, "work": words, "unknown": {}}), NASTY),
    ]
    table = Table(["column", NASTY], [[NASTY, -1.23456789], ["rows", 12345], ["none", None], ["said", True]])
    return html_page(f"Version 3 {NASTY}", "lead", [Block("A part", f"Words.\n{NASTY}", figures, [table], verdict=False), Block("Bare")])


def test_what_a_table_holds_is_text_and_nothing_else(page: str) -> None:
    elements = Elements(page)
    assert not elements.open
    assert "script" not in {tag for tag, _ in elements.seen}
    assert elements.text.count(NASTY) == 5  # title twice, words, header, cell
    assert "-1.2346" in elements.text
    assert "12,345" in elements.text


def test_nothing_is_fetched(page: str) -> None:
    sources = [attributes["src"] for tag, attributes in Elements(page).seen if tag == "img"]
    assert len(sources) == 9
    assert all((source or "").startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link", re.sub(r'base64,[^"]*', "", page))


def test_every_picture_says_what_it_shows(page: str) -> None:
    assert all(attributes["alt"] for tag, attributes in Elements(page).seen if tag == "img")


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_browser_shows_it(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,3000"]
    command = [str(BROWSER), *options, f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    blank = html_page("", "", [])
    (tmp_path / "page.html").write_text(blank)
    command[-2] = f"--screenshot={tmp_path / 'blank.png'}"
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert (tmp_path / "page.png").stat().st_size > 5 * (tmp_path / "blank.png").stat().st_size
