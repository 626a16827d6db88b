"""The pages in a real browser, where Chromium, its driver and selenium are installed."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from bench.experiments.selection import Selection
from bench.reporting.write import write_report
from tests.reporting.fake_records import SUM, Results
from tests.reporting.tuned_records import ABLATIONS, record
from tests.waiting import HANG

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its driver"),
]

EXPERIMENT = """# Does the branch help?
title = "Two arms"
[[arms]]
name = "DoReFa-Net"
[[arms]]
name = "EXP-Net"
baseline = "DoReFa-Net"
[[claims]]
arm = "EXP-Net"
over = "DoReFa-Net"
at = "equal epochs"
margin = 1.0
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("records")
    results = Results(root)
    results.experiment("two", EXPERIMENT)
    for seed in range(6):
        for width in (0.25, 0.5):
            curve = [30.0 + 100 * width, 60.0 + 20 * width + seed % 3]
            results.trial("two", "DoReFa-Net", curve, seed=seed, width=width)
            better = [20.0, 70.0 + 20 * width + (seed * 7) % 4]
            more = {"baseline": "DoReFa-Net", "strategy": SUM, "summary": {"train_flops": 1e12 * (1 + width)}}
            results.trial("two", "EXP-Net", better, seed=seed, width=width, **more)
    assert write_report(None, Selection(), results.write(), root / "out", ["html"]) == 0
    return root / "out"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    folder = tmp_path_factory.mktemp("chromium")
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={folder}")
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(str(DRIVER))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def _wait(browser, script: str):
    """Return the first true value of a script; the limit is reached only where the page hangs."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        if value := browser.execute_script(f"return {script}"):
            return value
        time.sleep(0.1)
    raise AssertionError(f"never true: {script}; {browser.get_log('browser')}")


def _open(browser, path: Path) -> None:
    browser.get(path.as_uri())
    _wait(browser, "document.documentElement.classList.contains('ready')")


@pytest.mark.parametrize("name", ["index.html", "two/index.html"])
def test_a_page_opens_sorts_filters_and_shows_the_runs(browser, out, name):
    _open(browser, out / name)
    table = "document.querySelector('table.rich:has(tr[data-cell])')"
    accuracy = f"[...{table}.tHead.rows[0].cells].findIndex((c) => /accuracy|Gain/.test(c.textContent))"
    column = f"[...{table}.tBodies[0].rows].map((r) => parseFloat(r.cells[{accuracy}].textContent))"
    browser.execute_script(f"{table}.tHead.rows[0].cells[{accuracy}].click()")
    numbers = _wait(browser, column)
    assert numbers == sorted(numbers) or numbers == sorted(numbers, reverse=True)
    browser.execute_script(f"{table}.tBodies[0].rows[0].cells[0].click()")
    assert "seed" in _wait(browser, "document.querySelector('.details')?.innerText").lower()
    assert _wait(browser, "document.querySelectorAll('.details tbody tr').length") == 6
    _wait(browser, "document.querySelector('.details .plot svg') !== null")
    if name == "index.html":
        browser.execute_script(
            "const s = document.querySelector('.dt-search input'); s.value = 'progressive';"
            "s.dispatchEvent(new Event('input'))"
        )
        rows = f"[...{table}.tBodies[0].rows].filter((r) => r.dataset.cell).length"
        assert _wait(browser, f"{rows} === 2") is True
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_one_click_leaves_the_tuned_rows_of_the_leaderboard_alone(browser, tmp_path):
    results, fields = Results(tmp_path), len(ABLATIONS["branch"])
    record(results, "tuned", ABLATIONS["branch"])
    results.experiment("fixed", 'title = "Fixed"\n[[arms]]\nname = "Plain"\n')
    for seed in range(3):
        results.trial("fixed", "Plain", [50.0, 90.0 + seed], seed=seed)
    assert write_report(None, Selection(), results.write(), tmp_path / "out", ["html"]) == 0
    _open(browser, tmp_path / "out" / "index.html")
    rows = "[...document.querySelectorAll('tr[data-cell]')].map((row) => row.cells[7].textContent)"
    assert browser.execute_script(f"return {rows}") == ["tuned"] * fields + ["untuned"]
    browser.execute_script("document.querySelectorAll('.dt-buttons button')[1].click()")
    assert _wait(browser, f"{rows}.length === {fields} && {rows}.every((text) => text === 'tuned')")
    browser.execute_script("document.querySelectorAll('.dt-buttons button')[1].click()")
    assert _wait(browser, f"{rows}.length === {fields + 1}")
    _open(browser, tmp_path / "out" / "tuned" / "index.html")
    names = "[...document.querySelectorAll('figcaption')].map((e) => e.textContent).join()"
    assert "over the axes of the strategy" in browser.execute_script(f"return {names}")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_an_arm_of_the_curves_toggles(browser, out):
    _open(browser, out / "two" / "index.html")
    plot = "document.querySelector('[data-plot=convergence-0]')"
    browser.execute_script(f"{plot}.scrollIntoView()")
    _wait(browser, f"{plot}.querySelector('.legendtoggle') !== null")
    shown = f"{plot}.data.filter((t) => t.visible !== 'legendonly').length"
    before = browser.execute_script(f"return {shown}")
    browser.execute_script(
        f"const t = {plot}.querySelector('.legendtoggle');"
        "for (const kind of ['mousedown', 'mouseup']) t.dispatchEvent(new MouseEvent(kind, {bubbles: true}))"
    )
    assert _wait(browser, f"{shown} < {before}")


@pytest.mark.parametrize("name", ["index.html", "two/index.html"])
def test_a_page_fits_a_phone_in_the_dark_and_prints(browser, out, name):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    _open(browser, out / name)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    ground = "getComputedStyle(document.body).backgroundColor"
    assert browser.execute_script(f"return {ground}") == "rgb(22, 22, 22)"
    boxes = "[...document.querySelectorAll('.annotation-text')].map((e) => e.getBoundingClientRect())"
    whole = f"{boxes}.length && {boxes}.every((box) => box.left >= 0 && box.right <= 360)"
    assert name == "index.html" or _wait(browser, whole)  # no label of the claims is cut
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 10_000
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_page_is_one_small_file_without_addresses(out):
    for name in ("index.html", "two/index.html"):
        content = (out / name).read_bytes()
        assert len(content) < 8 << 20
        assert b"<link" not in content.split(b"<script")[0] and b"connect-src" not in content


def test_a_page_of_many_long_runs_stays_small(tmp_path, monkeypatch):
    """The numbers of a page have a budget: 6 MB of bundles leave 2 MB for them."""
    from bench.reporting.page import charts, runs

    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    for seed in range(3):
        results.trial("two", "DoReFa-Net", [float(40 + epoch % 7) for epoch in range(90)], seed=seed)
    monkeypatch.setattr(charts, "POINTS", 30)
    monkeypatch.setattr(runs, "POINTS", 30)
    root = results.write()
    assert write_report(None, Selection(), root, tmp_path / "out", ["html"]) == 0
    held = re.search(r'id="data">(.*?)</script>', (tmp_path / "out/two/index.html").read_text(), re.S)
    assert held is not None
    data = json.loads(held[1])
    curves = [run["curve"] for cell in data["cells"] for run in cell["runs"]]
    assert all(len(epochs) <= 10 and epochs[-1] == 90 for epochs, _ in curves)
    plot = data["plots"]["convergence-0"]
    assert "the last of every 3 epochs" in plot["layout"]["title"]["text"]
    assert all(trace["x"][-1] == 90 or trace.get("fill") for trace in plot["traces"])
