"""An optimizer has one look everywhere, and no two of an experiment look alike, in grey or to colour-blind eyes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from bench.analysis.plots.context import SHARING
from bench.analysis.plots.looks import COLOURS, KNOWN, label_styles
from bench.config.file import load

ROOT = Path(__file__).parents[3]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))
MANY = [f"mine-{number}" for number in range(25)]

# What eyes without one kind of cone see of linear RGB: Machado et al. (2009), severity 1.
EYES = {
    "all cones": np.eye(3),
    "no L": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no M": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no S": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def lab(colour: str, eyes: Any) -> NDArray[np.float64]:
    """CIE L*a*b* of a colour as it is seen."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(eyes) @ linear, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_a_label_looks_the_same_in_every_experiment() -> None:
    seen: dict[str, set[str]] = {}
    for path in EXPERIMENTS:
        for label, style in label_styles(load(path).labels).items():
            seen.setdefault(label, set()).add(repr(style))
    assert {label for label, looks in seen.items() if len(looks) > 1} == set()
    assert len(seen) > 15


def test_the_colour_of_an_unknown_label_depends_on_its_name_alone() -> None:
    alone = label_styles(["sgd", "mine-3"])["mine-3"]["color"]
    assert label_styles([*MANY, "sam"])["mine-3"]["color"] == alone
    assert alone not in (KNOWN["sgd"].colour, KNOWN["sam"].colour)


@pytest.mark.parametrize("labels", [[*KNOWN], MANY, [*KNOWN, *MANY], [f"o{number}" for number in range(60)]])
def test_no_two_labels_share_colour_and_dash_or_colour_and_marker(labels: list[str]) -> None:
    styles = label_styles(labels)
    assert list(styles) == labels
    for parts in (
        (("color", "linestyle"), ("color", "marker")) if len(labels) < 30 else [("color", "linestyle", "marker")]
    ):
        looks = [tuple(style[part] for part in parts) for style in styles.values()]
        assert len(set(looks)) == len(labels), parts


def test_a_name_in_capitals_is_the_same_optimizer_but_not_a_second_one() -> None:
    assert label_styles(["SAM"])["SAM"] == label_styles(["sam"])["sam"]
    both = label_styles(["sam", "SAM"])
    assert both["sam"] != both["SAM"]


@pytest.mark.parametrize("eyes", EYES)
def test_colours_are_apart_for_all_kinds_of_colour_vision(eyes: str) -> None:
    for one, other in itertools.combinations(COLOURS, 2):
        assert np.linalg.norm(lab(one, EYES[eyes]) - lab(other, EYES[eyes])) > 15, (one, other)


def test_lines_and_markers_that_share_a_panel_are_apart_in_grey() -> None:
    together = [labels for path in EXPERIMENTS if len(labels := load(path).labels) <= SHARING]
    assert len(together) > 10
    for labels in together:
        styles = label_styles(labels).values()
        assert len({repr(style["linestyle"]) for style in styles}) == len(labels)
        assert len({style["marker"] for style in styles}) == len(labels)
