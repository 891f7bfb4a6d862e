"""Figures as they are written: the same bytes however many processes draw them, and a fork only where it is safe."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from bench.analysis import plots, report, tables
from bench.analysis.plots import rendering
from bench.analysis.plots.context import Drawing
from bench.analysis.study import Study
from bench.core.errors import BenchError
from bench.store.records import Results

Make = Callable[..., Results]


def test_two_processes_draw_the_bytes_that_one_draws(make_results: Make) -> None:
    results, names = make_results(seeds=(0, 1)), ["paired", "sweep", "cost"]

    def draw(family: str) -> dict[str, Drawing]:
        return plots.draw(Study(results), only=[family])

    one, two = (rendering.render_all(draw, names, ("png", "pdf", "svg"), processes) for processes in (1, 2))
    assert list(one) == list(two) == names
    assert one == two
    assert one["cost"].content.keys() == {"png", "pdf", "svg", "csv"}


def test_other_processes_do_the_drawing(make_results: Make) -> None:
    def draw(family: str) -> dict[str, Drawing]:
        if os.getpid() != here:
            raise BenchError(f"{family} is drawn elsewhere")
        return {}

    here = os.getpid()
    with pytest.raises(BenchError, match="a is drawn elsewhere"):
        rendering.render_all(draw, ["a", "b"], ("png",), 2)
    assert rendering.render_all(draw, ["a", "b"], ("png",), 1) == {}


def test_beside_other_threads_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    forked = Mock(return_value=[])
    monkeypatch.setattr(rendering, "_forked", forked)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    rendering.render_all(lambda family: {}, ["a", "b"], ("png",))
    assert forked.call_args.args[2] == 3
    forked.reset_mock()
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    rendering.render_all(lambda family: {}, ["a", "b"], ("png",))
    forked.assert_not_called()


def test_a_figure_is_laid_out_once_for_all_forms(make_results: Make) -> None:
    (drawing,) = plots.draw(Study(make_results(seeds=(0, 1))), only=["paired"]).values()
    places = [ax.get_position().bounds for ax in drawing.figure.axes]
    for form in ("png", "pdf", "svg"):
        rendering.as_bytes(drawing.figure, form)
        assert [ax.get_position().bounds for ax in drawing.figure.axes] == places


def test_every_family_has_a_name(make_results: Make, tmp_path: Path) -> None:
    """A figure whose family were not in the list would never be written."""
    results = make_results(vary={"label_noise": [0.2, 0.4]})
    written = {path.stem for path in plots.build(Study(results), tmp_path)}
    assert written == set(plots.draw(Study(results)))
    page = report.page(Study(results), tables.build(Study(results)), plots.rendered(Study(results), forms=("svg",)))
    assert page.count("data:image/svg+xml") == len(written)
