"""The site is built without a warning, has the generated pages, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bench.cli import cli
from tests import prefork
from tests.pages.documents import DOCUMENTS, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=prefork.HANGS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_every_document_is_a_page(site: Path) -> None:
    names = [Path(document).stem for document in DOCUMENTS if document.startswith("docs/")]
    for name in [*names, "index", "contributing", "changelog"]:
        assert (site / f"{name}.html").is_file(), name


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)", page.read_text(encoding="utf-8")
        )
        assert loaded
        assert not [address for address in loaded if re.match(r"(?:https?:)?//", address)], page.name


def test_links_of_the_site_lead_to_its_files(site: Path) -> None:
    for page in site.glob("*.html"):
        for address in re.findall(r"<(?:a|img)\b[^>]*?(?:href|src)=\"?([^\"\s>#]+)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", address):
                place = site / address.lstrip("/") if address.startswith("/") else page.parent / address
                assert place.exists(), f"{page.name}: {address}"


def test_the_page_of_commands_has_every_command_and_option(site: Path) -> None:
    page = (site / "command-line.html").read_text(encoding="utf-8")
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert f'id="bench-{name}"' in page
        for option in command.params:
            assert option.opts[-1].upper() in page.upper() or not isinstance(option, click.Option), (name, option.opts)


def test_the_api_has_the_public_names(site: Path) -> None:
    import bench

    page = (site / "api.html").read_text(encoding="utf-8")
    for name in ("SAM", "OptimizerWrapper", "Task", "Split", "Metric", "ImageFolder", "CsvTable", "run"):
        assert name in bench.__all__
        assert f'id="bench.{name}"' in page, name
