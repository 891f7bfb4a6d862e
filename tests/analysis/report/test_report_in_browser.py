"""The report in a real browser: sorting, filters, zoom, themes, keyboard, a phone, hostile texts, many runs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.analysis import plots, report, tables
from bench.analysis.study import Study
from bench.store import records
from bench.store.records import Results

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"),
]
Make = Callable[..., Results]
ROOT = Path(__file__).parents[3]
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
HOSTILE = """</script><script>document.title = "owned"</script><img src=x onerror="document.title = 'owned'">"""
PHONE, DESK = (390, 800), (1280, 900)


class Page:
    """A browser with a report open in it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, size: tuple[int, int] = DESK) -> None:
        self.log("browser"), self.log("performance")  # what was before is of no interest
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(path.as_uri())

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        return self.all(selector)[0]

    def press(self, selector: str) -> None:
        self.js("arguments[0].click()", self.one(selector))

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.js(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent.trim())", selector
        )
        return found

    def focused(self, what: str = "textContent") -> Any:
        return self.js(f"return document.activeElement.{what}")

    def pick(self, name: str, value: str) -> None:
        self.js(
            "const select = document.querySelector(`[name=${arguments[0]}]`); select.value = arguments[1];"
            "select.dispatchEvent(new Event('input', { bubbles: true }))",
            name,
            value,
        )

    def found(self) -> str:
        return self.texts("#found")[0]

    def log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log(kind)
        return entries


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests, with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield Page(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """The runs of a committed result set: four configurations of each of five optimizers, some seeds of each."""
    return records.read(ROOT / "results" / "digits_noise").records


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that result set."""
    results = records.read(ROOT / "results" / "digits_noise")
    path = tmp_path_factory.mktemp("digits") / "report.html"
    path.write_text(
        report.page(Study(results), tables.build(Study(results)), plots.rendered(Study(results), forms=("svg",)))
    )
    return path


def of(results: Results, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(report.page(Study(results), tables.build(Study(results)), {}))
    return path


# ---- nothing loaded, nothing wrong ---------------------------------------------------------------------------


def test_nothing_is_requested_and_nothing_goes_wrong(page: Page, digits: Path) -> None:
    page.open(digits)
    page.press(".zoom")
    page.keys("\ue00c")
    page.press(".expand")
    assert page.log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.log("performance")]
    urls = {one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"}
    assert digits.as_uri() in urls
    assert {url.partition(":")[0] for url in urls} <= {"file", "data"}
    assert {url for url in urls if url.startswith("file:")} == {digits.as_uri()}


def test_all_figures_are_drawn(page: Page, digits: Path) -> None:
    page.open(digits)
    sizes = page.js(
        "return [...document.querySelectorAll('figure img')].map((image) => image.complete && image.naturalWidth)"
    )
    assert len(sizes) >= 5
    assert all(sizes)


# ---- tables --------------------------------------------------------------------------------------------------


def test_a_table_sorts_by_its_numbers(page: Page, digits: Path) -> None:
    page.open(digits)
    header, cells = "#table-results th:nth-child(2)", "#table-results tbody td:nth-child(2)"
    before = page.texts(cells)
    orders = []
    for state in ("descending", "ascending", None):
        page.press(f"{header} button")
        assert page.one(header).get_attribute("aria-sort") == state
        orders.append(page.texts(cells))
    values = [float(text.split()[0]) for text in before]
    assert [float(text.split()[0]) for text in orders[0]] == sorted(values, reverse=True)
    assert orders[1] == orders[0][::-1]
    assert orders[2] == before


def test_signs_thousands_bounds_and_gaps_sort_as_numbers(page: Page, digits: Path) -> None:
    page.open(digits)
    read = page.js(
        "return ['+0.57 [-0.83, +1.97]', '-0.67', '1,200', '<0.001', '0.001', '4/5', '97.0 ± 0.4'].map(leading)"
    )
    assert read == pytest.approx([0.57, -0.67, 1200, 0.001, 0.001, 4, 97.0], abs=1e-6)
    assert read[3] < read[4]
    for direction in (-1, 1):
        page.press("#table-results th:nth-child(3) button")
        *texts, last = page.texts("#table-results tbody td:nth-child(3)")
        assert last == "–", "what is missing comes last either way"
        values = [direction * float(text.split()[0]) for text in texts]
        assert values == sorted(values)
        assert {value > 0 for value in values} == {True, False}


def test_a_sort_moves_whole_rows(page: Page, digits: Path) -> None:
    page.open(digits)
    before = set(page.texts("#table-results tbody tr"))
    page.press("#table-results th:nth-child(2) button")
    assert set(page.texts("#table-results tbody tr")) == before
    scores = [float(text.split()[0]) for text in page.texts("#table-results tbody td:nth-child(2)")]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1


# ---- runs ----------------------------------------------------------------------------------------------------


def test_runs_are_filtered_by_optimizer_seed_and_words(page: Page, digits: Path, runs: pd.DataFrame) -> None:
    total = len(runs)
    page.open(digits)
    assert page.found() == f"{total} of {total} runs"
    page.pick("optimizer", "sam")
    assert page.found() == f"{(runs.optimizer == 'sam').sum()} of {total} runs"
    page.pick("seed", "3")
    assert page.found() == f"4 of {total} runs"
    assert set(page.texts("#list tbody td:nth-child(2)")) == {"3"}
    assert all(text.startswith("sam (rho=") for text in page.texts("#list tbody th"))
    page.one("[name=search]").send_keys("rho=0.4")
    assert page.found() == f"1 of {total} runs"
    page.press("[type=reset]")
    page.js("return new Promise((done) => setTimeout(done, 20))")
    assert page.found() == f"{total} of {total} runs"


def test_runs_sort_and_turn_pages(page: Page, digits: Path, runs: pd.DataFrame) -> None:
    page.open(digits)
    pages = -(-len(runs) // 25)
    assert (page.texts("#at"), len(page.all("#list tbody tr"))) == ([f"Page 1 of {pages}"], 25)
    page.press("#list th:nth-child(3) button")
    best = [float(text) for text in page.texts("#list tbody td:nth-child(3)")]
    assert best == sorted(best, reverse=True)
    page.press("[data-step='1']")
    assert page.texts("#at") == [f"Page 2 of {pages}"]
    assert float(page.texts("#list tbody td:nth-child(3)")[0]) <= best[-1]


def test_a_run_opens_to_its_settings_curve_and_command(page: Page, digits: Path) -> None:
    page.open(digits)
    run = records.read(ROOT / "results" / "digits_noise").records.iloc[0]
    page.press(".expand")
    assert page.one(".expand").get_attribute("aria-expanded") == "true"
    assert page.texts(".command code") == [f"bench verify digits_noise {run['run_id']}"]
    shown = dict(zip(page.texts(".values dt"), page.texts(".values dd"), strict=True))
    assert float(shown["lr"]) == run["lr"]
    assert shown["weights_sha256"] == run["weights_sha256"]
    assert float(shown["test_acc"]) == pytest.approx(run["test_acc"], rel=1e-5)
    assert len(page.all(".chart path")) == 3
    page.press(".expand")
    assert not page.all(".details")


def test_failed_runs_are_shown_with_their_reason(page: Page, make_results: Make, tmp_path: Path) -> None:
    lost = {("sam", "rho=0.1", seed): "failed" for seed in range(3)} | {("adam", "", 1): "diverged"}
    page.open(of(make_results(status=lost), tmp_path))
    page.press(".show[data-status=failed]")
    page.js("return new Promise((done) => setTimeout(done, 20))")
    assert page.found() == "3 of 55 runs"
    page.press(".expand")
    assert "RuntimeError: out of memory" in page.texts(".details")[0]


def test_conditions_have_a_filter_where_there_are_several(page: Page, make_results: Make, tmp_path: Path) -> None:
    page.open(of(make_results({"sgd": {}, "sam": {}}, vary={"label_noise": [0.2, 0.4]}), tmp_path))
    page.pick("condition", "label_noise=0.4")
    assert page.found() == "10 of 20 runs"
    assert set(page.texts("#list tbody td:nth-child(2)")) == {"label_noise=0.4"}


# ---- figures -------------------------------------------------------------------------------------------------


def test_a_figure_is_enlarged_and_left_by_keyboard(page: Page, digits: Path) -> None:
    page.open(digits)
    page.js("document.querySelector('#figure-gap .zoom').focus()")
    page.keys("\ue007")
    assert page.one("#viewer").get_attribute("open") is not None
    fit, height = page.js("const image = document.querySelector('.canvas img'); return [image.width, image.height]")
    room = page.js(
        "const { clientWidth, clientHeight } = document.querySelector('.canvas'); return [clientWidth, clientHeight]"
    )
    assert (fit <= room[0], height <= room[1] + 1) == (True, True), "all of it is seen at first"
    page.keys("+", "+")
    assert page.texts("#viewer-scale") == ["200%"]
    assert page.js("return document.querySelector('.canvas img').clientWidth") == pytest.approx(2 * fit, abs=2)
    page.keys("-")
    assert page.texts("#viewer-scale") == ["150%"]
    page.keys("0", "\ue00c")  # escape
    assert page.one("#viewer").get_attribute("open") is None
    assert page.js("return document.activeElement.closest('figure').id") == "figure-gap", "focus goes back"


# ---- looks ---------------------------------------------------------------------------------------------------

BACKGROUND = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
# Relative luminance and contrast ratio of WCAG 2.2 for every kind of text, against what is behind it.
CONTRAST = """
const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const luminance = (colour) => {
  paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => {
    part /= 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (one) => {
  const colour = getComputedStyle(one).backgroundColor;
  return colour === "rgba(0, 0, 0, 0)" && one.parentElement ? behind(one.parentElement) : colour;
};
return arguments[0].map((selector) => {
  const one = document.querySelector(selector);
  const [a, b] = [luminance(getComputedStyle(one).color), luminance(behind(one))];
  return [selector, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
});
"""
TEXTS = ["h1", ".title", ".answer p", ".facts dt", "nav a", "figcaption", "figcaption a", "#table-results td"]
TEXTS += ["#table-results thead button", ".notes li", ".caption", ".expand", ".status", ".values dt", ".command code"]


def test_themes_follow_the_system_or_the_button(page: Page, digits: Path) -> None:
    page.open(digits)
    page.js("localStorage.clear()")
    for scheme, dark in (("dark", True), ("light", False)):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        page.open(digits)
        assert (sum(page.js(BACKGROUND)) < 200) is dark
    seen = []
    for _ in range(3):
        page.press("#theme")
        seen.append((page.texts("#theme")[0], sum(page.js(BACKGROUND)) < 200))
    assert seen == [("Theme: light", False), ("Theme: dark", True), ("Theme: auto", False)]
    for _ in range(2):
        page.press("#theme")
    page.open(digits)
    assert page.texts("#theme") == ["Theme: dark"], "remembered"
    page.js("localStorage.clear()")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read(page: Page, digits: Path, theme: str) -> None:
    page.open(digits)
    page.js("document.documentElement.dataset.theme = arguments[0]", theme)
    page.press(".expand")
    for selector, ratio in page.js(CONTRAST, TEXTS):
        assert ratio >= 4.5, selector


@pytest.mark.parametrize("size", [PHONE, (320, 640), DESK], ids=["phone", "small", "desk"])
def test_the_page_never_scrolls_sideways(page: Page, digits: Path, size: tuple[int, int]) -> None:
    page.open(digits, size)
    page.press(".expand")
    page.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.js("const root = document.documentElement; return root.scrollWidth - root.clientWidth") == 0
    assert page.js("return document.querySelector('.full').getBoundingClientRect().right") <= size[0]
    assert page.js("return innerWidth") == size[0]


OVERLAPS = """
const inside = (cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return range.getBoundingClientRect();
};
return [...document.querySelectorAll(".forest tbody tr")].filter((row) => {
  const boxes = [...row.cells].map(inside);
  return boxes.some((a, i) => boxes.slice(i + 1).some((b) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1));
}).length;
"""


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_in_the_forest_covers_anything_else(page: Page, digits: Path, size: tuple[int, int]) -> None:
    page.open(digits, size)
    (said,) = page.texts("h1")
    assert re.fullmatch(r"SAM: yes, \+\d\.\d\d points for 2\.0 times the passes", said)
    assert len(page.all(".forest tbody tr")) == 4
    assert page.js(OVERLAPS) == 0


def test_runs_of_chosen_configurations_are_marked_and_found(page: Page, digits: Path, runs: pd.DataFrame) -> None:
    page.open(digits)
    page.pick("chosen", "chosen")
    assert page.found() == f"{len(runs) // 4} of {len(runs)} runs", "one configuration of four"
    assert len(page.all("#list .tag")) == 25, "a page of them"


def test_all_that_can_be_pressed_is_reached_by_the_keyboard_in_order(page: Page, digits: Path) -> None:
    page.open(digits)
    order: list[str] = []
    while "expand" not in order and len(order) < 300:  # a button a column of every table lies before the runs
        page.keys("\ue004")
        order.append(
            page.js("const one = document.activeElement; return one.id || one.name || one.className || one.textContent")
        )
        assert page.js("const one = document.activeElement; return getComputedStyle(one).outlineStyle") != "none"
    assert order[0] == "skip"
    wanted = ["theme", "scroll", "zoom", "optimizer", "seed", "search", "expand"]
    places = [order.index(name) for name in wanted]
    assert places == sorted(places)
    page.js("document.querySelector('#table-results thead button').focus()")
    page.keys("\ue007")
    assert page.one("#table-results th").get_attribute("aria-sort") == "descending"
    assert page.focused("tagName") == "BUTTON"


def test_everything_that_is_pressed_has_a_name(page: Page, digits: Path) -> None:
    page.open(digits)
    unnamed = page.js("""
        const named = (one) => one.textContent.trim() || one.labels?.length ||
          one.getAttribute("aria-label") || one.getAttribute("aria-labelledby");
        return [...document.querySelectorAll("button, select, input, [role=region], dialog")]
          .filter((one) => !named(one)).map((one) => one.outerHTML.slice(0, 80))""")
    assert unnamed == []
    assert page.js("return document.querySelectorAll('img:not([alt])').length") == 0
    assert page.js("return document.documentElement.lang") == "en"


# ---- what is hostile, and what is much -----------------------------------------------------------------------


def test_hostile_texts_stay_texts(page: Page, make_results: Make, tmp_path: Path) -> None:
    label = f"sam{HOSTILE}"
    results = make_results(
        {"sgd": {}, label: {"sweep": ("rho", (0.1,))}},
        status={(label, "rho=0.1", 0): "failed"},
        title=HOSTILE,
        change=lambda frame: frame.assign(error=frame["error"].where(frame["status"] != "failed", HOSTILE)),
    )
    page.open(of(results, tmp_path))
    page.pick("optimizer", label)
    for number in range(5):
        page.js("document.querySelectorAll('.expand')[arguments[0]].click()", number)
    assert page.js("return document.title") == HOSTILE
    assert page.js("return document.querySelectorAll('img[src=x]').length") == 0
    assert HOSTILE in page.texts("#list tbody tr")[0]
    assert page.log("browser") == []


def test_ten_thousand_runs_open(page: Page, make_results: Make, tmp_path: Path) -> None:
    some = make_results({"sgd": {}, "sam": {"sweep": ("rho", (0.1, 0.2, 0.5))}}, seeds=range(25))
    copies = range(100)
    runs, curves = (
        pd.concat(
            [frame.assign(seed=frame["seed"] + 25 * n, run_id=frame["run_id"] + f"-{n}") for n in copies],
            ignore_index=True,
        )
        for frame in (some.records, some.curves)
    )
    many = dataclasses.replace(some, records=runs, curves=curves, meta={**some.meta, "seeds": list(range(2500))})
    path = tmp_path / "report.html"
    path.write_text(report.page(Study(many), tables.build(Study(many)), {}))
    page.open(path)
    assert page.found() == "10,000 of 10,000 runs"
    assert len(page.all("#list tbody tr")) == 25, "a page of them only"
    page.pick("seed", "2499")
    assert page.found() == "4 of 10,000 runs"
    page.press("#list th:nth-child(3) button")
    values = [float(text) for text in page.texts("#list tbody td:nth-child(3)")]
    assert values == sorted(values, reverse=True)
    assert page.log("browser") == []
