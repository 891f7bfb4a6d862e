"""The look of an optimizer: by its name, so that it is the same in the figures of every experiment."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from bench.core.meta import Meta

Style = dict[str, Any]

BLACK, BLUE, VERMILION, SKY, ORANGE = "#000000", "#0072B2", "#D55E00", "#56B4E9", "#E69F00"
PINK, GREEN, WINE, INDIGO = "#CC79A7", "#009E73", "#882255", "#332288"
COLOURS = (BLACK, BLUE, VERMILION, SKY, ORANGE, PINK, GREEN, WINE, INDIGO)
"""From Okabe & Ito, Color Universal Design (2008), and Tol's muted scheme (2021): apart for all kinds of colour vision.

Yellow is left out, which vanishes on paper."""

FOR_OTHERS = (VERMILION, SKY, ORANGE, PINK, GREEN, WINE, INDIGO)  # black is sgd's and blue is SAM's
SOLID, DASHED, DOTTED, DASH_DOT = "-", (0, (5, 1.5)), (0, (1.3, 1.3)), (0, (5, 1.5, 1, 1.5))
LONG, DASH_DOT_DOT = (0, (11, 2)), (0, (4, 1.2, 1, 1.2, 1, 1.2))
DASHES = (SOLID, DASHED, DOTTED, DASH_DOT, LONG, DASH_DOT_DOT)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")


class Look(NamedTuple):
    colour: str
    dash: Any
    marker: str


KNOWN = {
    "sgd": Look(BLACK, SOLID, "o"),
    "sgd-2x": Look(ORANGE, DASHED, "s"),
    "adam": Look(PINK, DASH_DOT_DOT, "v"),
    "adam-2x": Look(INDIGO, DOTTED, "<"),
    "adamw": Look(VERMILION, DASH_DOT, "^"),
    "adamw-2x": Look(WINE, DASH_DOT_DOT, "<"),
    "sam": Look(BLUE, LONG, "D"),
    "asam": Look(SKY, DOTTED, "P"),
    "gsam": Look(GREEN, DASHED, "X"),
    "friendly-sam": Look(INDIGO, DASHED, "p"),
    "sam-norm-only": Look(PINK, SOLID, "h"),
    "esam": Look(WINE, DOTTED, ">"),
    "looksam": Look(GREEN, DASH_DOT, ">"),
    "sam-every-2nd": Look(INDIGO, SOLID, "*"),
    "sam-last-half": Look(ORANGE, DOTTED, "X"),
    "momentum-sam": Look(SKY, SOLID, "v"),
    "random-direction": Look(VERMILION, DASHED, "X"),
    "ema": Look(WINE, SOLID, "p"),
    "swa": Look(PINK, DASH_DOT, ">"),
}
"""Those that stand together in most experiments differ in dash and in marker, too: they can be told apart in grey."""


def styles_of(meta: Meta) -> dict[str, Style]:
    """Return the look of each optimizer of an experiment; its colour may be one that [display] asks for."""
    labels_of = meta.get("labels_of", {})
    # By label, not by name: an optimizer keeps its look when it is called something else.
    known = label_styles([labels_of.get(label, label) for label in meta["labels"]])
    styles = dict(zip(meta["labels"], known.values(), strict=True))
    colours = meta["display"]["colours"] if "display" in meta else {}
    return {label: style | ({"color": colours[label]} if label in colours else {}) for label, style in styles.items()}


def label_styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return colour, dash and marker of each label, as matplotlib takes them.

    The colour depends on the name alone. A name that is not in `KNOWN` has a colour by its hash, and the dash and the
    marker that the other labels use least, so that no two labels of an experiment look the same.
    """
    looks: dict[str, Look] = {}
    # First all known names, so that an unknown one never takes the look of a known one further down.
    for label in labels:
        known = KNOWN.get(label.lower().replace("_", "-"))
        # "SAM" and "sam" have one known look: the second of them is treated as unknown.
        if known and known not in looks.values():
            looks[label] = known
    for label in labels:
        if label not in looks:
            looks[label] = _unlike(label, list(looks.values()))
    return {label: dict(zip(("color", "linestyle", "marker"), looks[label], strict=True)) for label in labels}


def _unlike(label: str, others: Sequence[Look]) -> Look:
    """Return the look for an unknown label that differs most from the looks in use."""
    # A digest instead of `hash`, whose value for a text changes from process to process.
    number = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8])
    colour = FOR_OTHERS[number % len(FOR_OTHERS)]
    same = [look for look in others if look.colour == colour]

    def confusion(look: Look) -> tuple[int, ...]:
        # Compared left to right: never the same look, then least in common with looks of this colour, then of all.
        return (
            look in same,
            sum((one.dash == look.dash) + (one.marker == look.marker) for one in same),
            sum(one.dash == look.dash for one in others),
            sum(one.marker == look.marker for one in others),
        )

    # The remainder chose the colour; the quotient lets names of one colour start at different dashes and markers.
    shift = number // len(FOR_OTHERS)
    dashes, markers = (_shifted(choices, shift) for choices in (DASHES, MARKERS))
    return min((Look(colour, *pair) for pair in product(dashes, markers)), key=confusion)


def _shifted(choices: Sequence[Any], by: int) -> Sequence[Any]:
    start = by % len(choices)
    return [*choices[start:], *choices[:start]]
