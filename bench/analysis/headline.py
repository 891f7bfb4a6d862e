"""The answer in one line, and the differences behind it one below the other: what a reader sees first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.analysis.captions import Captions
from bench.analysis.contrasts import EQUAL, Contrast, Verdict, wrappers
from bench.analysis.study import Study
from bench.store.conditions import conditions
from bench.store.selection import reported

if TYPE_CHECKING:
    from bench.store.records import Results

ANSWERS: dict[Verdict, str] = {"better": "yes", "worse": "no", "unclear": "not shown", "untested": "no verdict"}
MARGIN = 0.04  # of the width of the forest, on either side of all intervals


def headline(study: Study) -> str:
    """Return the answer as one line: the optimizer asked about, yes or no, the difference and its price.

    It is about the label "sam" if there is one, else about the first optimizer that wraps another: never about the
    optimizer that did best on the test set.

    Example:
        "SAM: yes, +2.95 points for 2.0 times the passes"
    """
    captions = study.captions
    label = _asked(study.results)
    if not reported(study.results.records)["status"].eq("done").any():
        return "No answer yet"
    if label is None:
        return f"{captions.baseline}: compared with nothing"
    against = [one for one in study.contrasts if one.ours.label == label]
    # Without a common finished seed there is no difference to tell.
    base = [one for one in against if one.theirs.label == captions.baseline and one.test.difference.n]
    name = "SAM" if label == "sam" else label
    if not base:
        return f"{name}: no answer yet"
    return f"{name}: {_answer(captions, base)} {_price(base)}{_doubt(captions, base)}"


def at_equal_passes(study: Study) -> str:
    """Return the headline against the optimizer with equal passes (mostly twice the epochs); "" if there is none.

    Example:
        "At equal passes, against sgd-2x: yes, +2.39 points"
    """
    captions = study.captions
    label = _asked(study.results)
    against = [one for one in study.contrasts if one.ours.label == label and one.theirs.label != captions.baseline]
    # Found in "passes" and in "epochs and passes".
    equal: dict[str, list[Contrast]] = {}
    for one in against:
        if "passes" in one.equal and one.test.difference.n:
            equal.setdefault(one.theirs.label, []).append(one)
    said = [
        f"against {competitor}: {_answer(captions, compared)}{_doubt(captions, compared)}"
        for competitor, compared in equal.items()
    ]
    return f"At equal passes, {'; '.join(said)}" if said else ""


def _asked(results: Results) -> str | None:
    others = [label for label in results.meta["labels"] if label != results.meta["baseline"]]
    among = wrappers(results) or others
    # By name and order alone: to take the best score would be a choice on the test set.
    return "sam" if "sam" in among else next(iter(among), None)


def _answer(captions: Captions, compared: Sequence[Contrast]) -> str:
    """Return "yes, +2.95 points", under several conditions "yes in 3, no in 1 of 8 tasks, -0.35 to +2.95 points"."""
    unit = captions.differences_in or f" in {captions.metric}"
    means = [
        captions.signed_mean(one.test.difference) for one in sorted(compared, key=lambda one: one.test.difference.mean)
    ]
    span = means[0] if len(compared) == 1 else f"{means[0]} to {means[-1]}"
    among, what = _among(captions)
    if among == 1:
        return f"{ANSWERS[compared[0].verdict]}, {span}{unit}"
    # `found` has no comparison without a pair, but `among` counts every condition: the parts need not add up to it.
    held = {verdict: sum(one.verdict == verdict for one in compared) for verdict in ANSWERS}
    sides = [f"{ANSWERS[side]} in {held[side]}" for side in ("better", "worse") if held[side]]
    neither = f"{ANSWERS['unclear' if held['unclear'] else 'untested']} in any"
    return f"{', '.join(sides) or neither} of {among} {what}, {span}{unit}"


def _doubt(captions: Captions, compared: Sequence[Contrast]) -> str:
    """Return " (sgd is degenerate)", under several conditions " (sgd is degenerate in 2 of 8 tasks)"; "" if none is."""
    count = Counter(label for one in compared for label in one.degenerate)
    among, what = _among(captions)
    said = [f"{label} is degenerate{f' in {n} of {among} {what}' * (among > 1)}" for label, n in count.items()]
    return f" ({', '.join(said)})" if said else ""


def _among(captions: Captions) -> tuple[int, str]:
    """Return the number of conditions, and the word for them."""
    return len(conditions(captions.meta)), "tasks" if list(captions.varied) == ["task"] else "conditions"


def _price(compared: Sequence[Contrast]) -> str:
    ratios = [one.ours.passes / one.theirs.passes for one in compared]
    low, high = min(ratios), max(ratios)
    # The tolerance of `contrasts`: budgets this close count as equal there, too.
    if abs(low - 1) < EQUAL and abs(high - 1) < EQUAL:
        return "for the same passes"
    shown = list(dict.fromkeys(_times(ratio) for ratio in (low, high)))
    return f"for {' to '.join(shown)} times the passes"


def _times(ratio: float) -> str:
    """Return a ratio with one decimal, or with two if one decimal would round it to 1."""
    return f"{ratio:.2f}" if abs(ratio - 1) < 0.05 else f"{ratio:.1f}"


# ---- the forest ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """An optimizer against the baseline under one condition, with its positions in the plot in percent of the width."""

    name: str
    label: str
    verdict: Verdict
    said: str
    difference: str
    passes: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Forest:
    """The differences of all optimizers to the baseline on one scale.

    Attributes:
        unit: of the differences, e.g. "accuracy (points)".
        zero: the place of no difference, in percent of the width.
        better: the side on which an optimizer is better, "right" or "left".
        ends: the values at both edges, as text.
        blocks: the branches of each condition, by the condition's name.
    """

    baseline: str
    unit: str
    zero: float
    better: str
    ends: tuple[str, str]
    blocks: dict[str, list[Branch]]


def forest(study: Study) -> Forest | None:
    """Return the content of the forest plot: every comparison with the baseline; None if there is none."""
    captions = study.captions
    compared = [one for one in study.contrasts if one.theirs.label == captions.baseline and one.test.difference.n]
    if not compared:
        return None
    edges = [value for one in compared for value in _bounds(one) if math.isfinite(value)]
    # 0 is always on the axis: the side of it on which an interval lies is the result.
    low, high = min([0.0, *edges]), max([0.0, *edges])
    # If every difference is 0, the axis still needs a width: `place` divides by it.
    room = MARGIN * ((high - low) or 1.0)
    low, high = low - room, high + room

    def place(value: float) -> float:
        # A bound that is not finite set no limit above; it is drawn at the edge.
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    blocks: dict[str, list[Branch]] = {}
    for one in compared:
        left, right = _bounds(one)
        branch = Branch(
            name=one.ours.name,
            label=one.ours.label,
            verdict=one.verdict,
            # A row of the forest asks no question, so it says the verdict and not "yes" or "no".
            said={**ANSWERS, "better": "better", "worse": "worse"}[one.verdict] + _doubt_of(one),
            difference=_numbers(captions, one),
            passes=f"{_times(one.ours.passes / one.theirs.passes)}×",
            mean=place(one.test.difference.mean),
            low=place(left),
            high=place(right),
        )
        blocks.setdefault(one.condition, []).append(branch)
    return Forest(
        baseline=captions.baseline,
        unit=f"{captions.metric}{captions.points}",
        zero=place(0.0),
        better="right" if study.meta["metric"]["higher_is_better"] else "left",
        ends=(f"{low * captions.scale:+.3g}", f"{high * captions.scale:+.3g}"),
        blocks=blocks,
    )


def _doubt_of(contrast: Contrast) -> str:
    return "".join(f"; {label} is degenerate" for label in contrast.degenerate)


def _numbers(captions: Captions, contrast: Contrast) -> str:
    difference = contrast.test.difference
    limits = f" {captions.signed_bounds(difference)}" if difference.n > 1 else ""
    return f"{captions.signed_mean(difference)}{limits}"


def _bounds(contrast: Contrast) -> tuple[float, float]:
    """Return the ends of the interval, or the mean twice if there is no interval."""
    interval = contrast.test.difference
    return (interval.low, interval.high) if interval.known else (interval.mean, interval.mean)


def dates(records: Any) -> str:
    """Return when the runs ended, as recorded: "2026-11-28", or the first and the last day; "" if none is known."""
    if "finished_at" not in records:
        return ""
    # Times are ISO 8601 in UTC: the first ten characters are the day, and days sort as text.
    days = sorted(str(moment)[:10] for moment in records["finished_at"].dropna())
    return "" if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
