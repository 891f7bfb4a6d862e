"""What a report of 10,000 runs costs: to write, on disk, and to open in a browser."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import pandas as pd

from bench.analysis import plots, report, tables
from bench.analysis.study import Study
from bench.store import records
from bench.store.records import Results

ROOT = Path(__file__).parents[2]
RUNS = 10_000


def opened() -> None:
    """Print seconds and megabytes for the digits' 100 runs and for 10,000 made of them."""
    some = records.read(ROOT / "results" / "digits_noise")
    for results in (some, _many(some)):
        start = time.perf_counter()
        built, figures = tables.build(Study(results)), plots.rendered(Study(results), forms=("png", "pdf", "svg"))
        made = time.perf_counter()
        html = report.page(Study(results), built, figures)
        written = time.perf_counter()
        print(f"report of {len(results.records):,} runs: {len(html) / 1e6:.2f} MB")
        print(f"  tables and figures {made - start:.1f} s, page {written - made:.1f} s")
        if shutil.which("chromium") and shutil.which("chromedriver"):
            _time_in_browser(html)
        else:
            print("  not opened: chromium and chromium-driver are not installed")
    print()


def _many(some: Results) -> Results:
    copies = range(RUNS // len(some.records))
    step = len(some.meta["seeds"])
    runs, curves = (
        pd.concat([frame.assign(seed=frame["seed"] + step * n, run_id=frame["run_id"] + f"{n}") for n in copies])
        for frame in (some.records, some.curves)
    )
    meta = {**some.meta, "seeds": list(range(step * len(copies)))}
    return dataclasses.replace(some, meta=cast(Any, meta), records=runs, curves=curves)


def _time_in_browser(html: str) -> None:
    from selenium import webdriver

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(html)
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={folder}/profile")
        driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
        try:
            driver.get("about:blank")
            start = time.perf_counter()
            driver.get(path.as_uri())
            opened = time.perf_counter() - start
            filtered = driver.execute_script(
                "const start = performance.now(); const select = document.querySelector('[name=seed]');"
                "select.value = '0'; select.dispatchEvent(new Event('input', { bubbles: true }));"
                "document.querySelector('#list th:nth-child(3) button').click(); return performance.now() - start"
            )
            print(f"  opens in {opened:.2f} s; filtered and sorted in {filtered:.0f} ms")
        finally:
            driver.quit()
