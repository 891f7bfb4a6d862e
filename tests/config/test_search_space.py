"""Search spaces: what is drawn lies in its range, is as much for everyone, and is the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from bench.config.search_space import Range, Search, draw, grid

SEARCHES: list[Search] = ["random", "sobol"]


def random_axes(seed: int) -> dict[str, Range | list[float]]:
    """Some axes of every kind, with ends over ten orders of magnitude."""
    random = np.random.RandomState(seed)
    axes: dict[str, Range | list[float]] = {}
    for number in range(random.randint(1, 5)):
        kind = random.randint(4)
        low = float(f"{10 ** random.uniform(-6, 3):.2g}")
        high = float(f"{low * 10 ** random.uniform(0.2, 4):.2g}")
        if kind == 0:
            axes[f"list{number}"] = sorted({float(value) for value in random.randint(100, size=7)})
        elif kind == 1:
            axes[f"whole{number}"] = Range(random.randint(1, 9), random.randint(10, 90), bool(random.randint(2)), True)
        else:
            axes[f"range{number}"] = Range(low, high, log=kind == 2)
    return axes


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("seed", range(25))
def test_every_trial_lies_in_its_space_and_there_are_as_many_as_asked_all_different(seed: int, search: Search) -> None:
    axes, trials = random_axes(seed), 3 + seed % 5
    found = draw(axes, trials, search)
    assert len(found) == len({str(point) for point in found}) == trials
    for point in found:
        assert list(point) == list(axes)
        for key, value in point.items():
            axis = axes[key]
            if isinstance(axis, Range):
                assert axis.low <= value <= axis.high
                assert isinstance(value, int if axis.whole else float)
                assert axis.whole or value in (axis.low, axis.high, float(f"{value:.3g}"))
            else:
                assert value in axis
    assert found == draw(axes, trials, search), "the same again"
    assert found == draw(axes, trials + 6, search)[:trials] if trials + 6 < 40 else True


@pytest.mark.parametrize("search", SEARCHES)
def test_every_whole_number_comes_about_equally_often(search: Search) -> None:
    drawn = [point["n"] for point in draw({"n": Range(1, 4, whole=True), "x": Range(0, 1)}, 256, search)]
    assert set(drawn) == {1, 2, 3, 4}
    assert min(drawn.count(value) for value in (1, 2, 3, 4)) > 45


def test_a_sobol_search_fills_every_part_of_every_range() -> None:
    points = draw({"lr": Range(1e-4, 1.0, log=True), "rho": Range(0.0, 0.8)}, 8, "sobol")
    assert sorted(int(2 * np.log10(1e4 * point["lr"])) for point in points) == list(range(8))
    assert sorted(int(10 * point["rho"]) for point in points) == list(range(8))


def test_the_same_file_gives_the_same_trials_on_every_machine() -> None:
    axes = {"lr": Range(1e-3, 1.0, log=True), "rho": Range(0.01, 0.5, log=True)}
    assert [tuple(point.values()) for point in draw(axes, 3, "sobol")] == [
        (0.7, 0.279),
        (0.00174, 0.0379),
        (0.0285, 0.14),
    ]
    assert [tuple(point.values()) for point in draw(axes, 2, "random")] == [(0.0829, 0.1), (0.0453, 0.384)]


def test_a_space_that_is_too_small_is_told() -> None:
    with pytest.raises(ValueError, match="only 3 different configurations were found, for 4 trials"):
        draw({"m": Range(1, 3, whole=True)}, 4, "sobol")


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    assert grid({"a": [1, 2], "b": [3, 4]}) == [{"a": a, "b": b} for a in (1, 2) for b in (3, 4)]
    assert grid({}) == [{}]
