"""The question of an experiment and its answer in plain words, limited to what the numbers support."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from bench.analysis.captions import enumerated
from bench.analysis.contrasts import Contrast, Verdict, competitors, wrappers
from bench.analysis.load import WHY, contradict
from bench.analysis.stats import FEWEST
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.store.conditions import conditions, merged, under
from bench.store.selection import phased, reported

FEW = 3  # so many conditions get a sentence each; more are counted
FEW_ASKED = 4  # so many optimizers get a paragraph each; more are told of together, competitor by competitor

TALLY: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "unclear": "no difference could be shown",
    "untested": "no verdict",
}
VERDICTS: dict[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "unclear": "not shown to differ from",
    "untested": "not judged against",
}


def question(study: Study) -> str:
    """Return the experiment's question, in one sentence.

    Example:
        "Do sam and asam beat sgd on digits with 20% of the training labels replaced (resnet8), and at what price?"
    """
    captions = study.captions
    ours = wrappers(study.results)
    competitor = enumerated(competitors(study.results))
    # If nothing wraps an optimizer, the question is about every label but the baseline.
    if not ours:
        ours = [label for label in study.meta["labels"] if label != captions.baseline]
    if not ours:
        return f"How well does {captions.baseline} do on {captions.subject()}?"
    verb = "Do" if len(ours) > 1 else "Does"
    return f"{verb} {enumerated(ours)} beat {competitor} on {captions.subject()}, and at what price?"


def answer(study: Study) -> list[str]:
    """Return the test set's answer to the question, a paragraph of sentences per optimizer that is asked about.

    An optimizer is called better or worse if Holm's corrected p is below 0.05 over at least four pairs; where no
    difference could be shown, the sentence names the smallest difference that would be found with 80% power. Fewer
    pairs, a single optimizer or no finished run give a sentence that says just that. A degenerate optimizer is called
    degenerate wherever it is named.
    """
    return list(_Answer(study).paragraphs())


class _Answer:
    def __init__(self, study: Study) -> None:
        self.study, self.captions = study, study.captions
        self.results, self.meta = study.results, study.meta
        self.contrasts = study.contrasts
        self.among = conditions(study.meta)

    def paragraphs(self) -> Iterator[str]:
        # Runs of tuning are left out: they are not measured on the test set, so they cannot answer.
        if not reported(self.results.records)["status"].eq("done").any():
            yield f"No {'final ' * bool(phased(self.meta))}run has finished: there is no answer yet."
            return
        asked = wrappers(self.results) or [label for label in self.meta["labels"] if label != self.captions.baseline]
        if not asked:
            yield f"{self.captions.baseline} is compared with nothing: there is no difference to tell."
        # Three forms: few optimizers and conditions get every number, many optimizers under few conditions share their
        # sentences, and over many conditions verdicts are counted.
        few = len(asked) <= FEW_ASKED
        if not few and len(self.among) <= FEW:
            for condition in self.among:
                yield from self._together(asked, condition)
            # Each has its sentence already: the loop below must not name it again.
            asked = []
        for label in asked:
            contrasts = [contrast for contrast in self.contrasts if contrast.ours.label == label]
            one_by_one = few and len(self.among) <= FEW
            yield from self._one_by_one(contrasts) if one_by_one else [" ".join(self._counted(label, contrasts))]
        # What follows holds for all paragraphs above, so it comes last.
        if edge := self._at_the_edge():
            yield (
                f"The chosen setting of {enumerated(edge)} is at the edge of the values that were tried. A value "
                "beyond that edge may be better and may change the comparison."
            )
        yield from self.study.unequal_searches
        if self.captions.caution():
            yield self.captions.caution()

    def _at_the_edge(self) -> list[str]:
        """Return the compared labels whose choice is the first or last value of its sweep, under any condition."""
        sides = [row for contrast in self.contrasts for row in (contrast.ours, contrast.theirs)]
        at_an_edge = {row.label for row in sides if row.edges}
        return [label for label in self.meta["labels"] if label in at_an_edge]

    # ---- few conditions: every number ------------------------------------------------------------------------

    def _one_by_one(self, contrasts: Sequence[Contrast]) -> Iterator[str]:
        for condition in self.among:
            here = [contrast for contrast in contrasts if contrast.condition == condition]
            # Contrasts come competitor by competitor, and the baseline is the first competitor (see `competitors`).
            sentences = [self._against_baseline(here[0])]
            sentences += self._at_equal(here[1:], "passes")
            sentences += self._at_equal(here[1:], "epochs")
            sentences += self._at_equal(here[1:], "neither")
            yield (f"{condition}: " if condition else "") + " ".join(sentences)

    def _against_baseline(self, contrast: Contrast) -> str:
        ours, theirs, n = contrast.ours, contrast.theirs, contrast.test.difference.n
        lost = "".join(
            f" {row.planned - row.done} of {row.planned} runs of {row.label} did not finish and count in no mean."
            for row in (ours, theirs)
            # A row without any finished run is covered by the sentence for n = 0 below.
            if 0 < row.done < row.planned
        )
        lost += "".join(
            f" The score of {row.done - row.scored} of {row.done} finished runs of {row.label} is not finite: it "
            "counts in no mean."
            for row in (ours, theirs)
            if row.scored < row.done
        )
        if n == 0:
            return f"{ours.name} and {theirs.name} have no seed in common that both finished: nothing to compare.{lost}"
        # A metric without a unit must not leave a blank before the next word.
        unit = f" {self.captions.unit}".rstrip()
        means = [f"{row.name} {self.captions.mean(row.test_metric)}{unit}" for row in (ours, theirs)]
        return (
            f"{self._verdict(contrast)}: test {self.captions.metric} of {' against '.join(means)}, that is "
            f"{self._difference(contrast)}, n = {n}, {self._price(contrast)}.{lost}"
        )

    def _at_equal(self, contrasts: Sequence[Contrast], budget: str) -> Iterator[str]:
        """Yield a sentence on all competitors of one equal budget; one with both budgets equal counts under passes."""
        # The last word of "epochs and passes" is "passes", so no contrast has two sentences.
        here = [
            contrast
            for contrast in contrasts
            if contrast.equal.rpartition(" ")[2] == budget and contrast.test.difference.n
        ]
        if not here:
            return
        clauses = []
        # In the order of VERDICTS: a win comes before a loss, and both before what could not be shown.
        for verdict, words in VERDICTS.items():
            alike = [one for one in here if one.verdict == verdict]
            each = [
                f"{one.theirs.name} ({self._difference(one)}{self._why(one)}{_degenerate(one.theirs, '; ')})"
                for one in alike
            ]
            clauses += [f"{words} {enumerated(each)}"] if each else []
        start = "With neither budget equal" if budget == "neither" else f"At equal {budget}"
        yield f"{start} it is {'; '.join(clauses)}."

    def _verdict(self, contrast: Contrast) -> str:
        ours, theirs = (
            f"{row.label} ({_degenerate(row)})" if row.degenerate else row.label
            for row in (contrast.ours, contrast.theirs)
        )
        if contrast.verdict in ("better", "worse"):
            return f"{ours} is {VERDICTS[contrast.verdict]} {theirs}"
        if contrast.verdict == "untested":
            return f"{ours} against {theirs} ({self._detail(contrast)})"
        return f"No difference between {ours} and {theirs} could be shown ({self._detail(contrast)})"

    def _detail(self, contrast: Contrast) -> str:
        """Return why no difference was shown: no valid test, Holm's correction, or the smallest detectable one."""
        n = contrast.test.difference.n
        if contrast.verdict == "untested":
            few = "one seed gives no test" if n == 1 else f"{n} pairs are too few for a verdict"
            return few if n < FEWEST else "differences without spread give no test"
        if not contrast.covers_zero:
            # The uncorrected interval leaves out 0, so it is the correction that keeps the question open.
            return f"p = {contrast.p:.3f} after Holm's correction for {contrast.among} comparisons"
        size = f"{contrast.detectable * self.captions.scale:.{self.captions.digits}f}{self.captions.differences_in}"
        return f"at this n one of {size} would be found with 80% power"

    def _why(self, contrast: Contrast) -> str:
        return f"; {self._detail(contrast)}" if contrast.verdict in ("unclear", "untested") else ""

    def _difference(self, contrast: Contrast) -> str:
        interval = contrast.test.difference
        limits = f" {self.captions.signed_bounds(interval)}" if interval.n > 1 else ""
        return f"{self.captions.signed_mean(interval)}{self.captions.differences_in}{limits}"

    def _price(self, contrast: Contrast) -> str:
        """Return the price in passes, and in time if all times were taken on one machine."""
        passes = contrast.ours.passes / contrast.theirs.passes
        seconds = contrast.ours.train_seconds.mean / contrast.theirs.train_seconds.mean
        # Times of several versions do not compare, and one side may have no run on the hardware that counts.
        if self.captions.source.mixed or math.isnan(seconds):
            return f"at {passes:.2f} times the passes"
        hardware = self.study.clock.hardware.get(contrast.condition)
        where = f" on {hardware}" if hardware else ""
        doubt = f" (these differ by more than a third: {WHY})" if contradict(seconds, passes) else ""
        return f"at {passes:.2f} times the passes and {seconds:.2f} times the training time{where}{doubt}"

    # ---- many optimizers: competitor by competitor -----------------------------------------------------------------

    def _together(self, asked: Sequence[str], condition: str) -> Iterator[str]:
        """Yield a sentence per competitor, and one on the bases that are the competitor of one optimizer alone."""
        here = [contrast for contrast in self.contrasts if contrast.condition == condition]
        alone: list[Contrast] = []  # the only comparison of their competitor: a sentence for all of them
        # `groupby` joins neighbours only: the contrasts of a condition come competitor by competitor.
        for competitor, group in groupby(here, lambda contrast: contrast.theirs.name):
            compared = [one for one in group if one.ours.label in asked and one.test.difference.n]
            if len(compared) == 1 and compared[0].theirs.label != self.captions.baseline:
                alone += compared
            elif compared:
                corrected = f"p corrected by Holm's method for {compared[0].among} comparisons; "
                passes = f"×: passes, {compared[0].theirs.label}'s are 1"
                flagged = _degenerate(compared[0].theirs, "; ")
                about = f"{corrected if compared[0].among else ''}{passes}{flagged}"
                yield self._tallied(condition, f"against {competitor} ({about})", compared)
        if alone:
            yield self._tallied(condition, "one against one (×: passes, the latter's are 1)", alone, True)

    def _tallied(self, condition: str, about: str, compared: Sequence[Contrast], one_by_one: bool = False) -> str:
        """Return who is better, who is worse, and who is neither, each with its difference and passes.

        With `one_by_one` each has a competitor of its own, which is named beside it.
        """
        clauses = []
        for verdict, words in TALLY.items():
            each = [
                f"{one.ours.label}{f' against {one.theirs.label}' * one_by_one} ({self._difference(one)}, "
                f"{one.ours.passes / one.theirs.passes:.2f}×{_degenerate(one.ours, '; ')}"
                f"{_degenerate(one.theirs, f'; {one.theirs.label} is ') * one_by_one})"
                for one in compared
                if one.verdict == verdict
            ]
            clauses += [f"{words}: {enumerated(each)}"] if each else []
        start = f"{condition}: {about}" if condition else about[0].upper() + about[1:]
        return f"{start}: {'; '.join(clauses)}."

    # ---- many conditions: counts -----------------------------------------------------------------------------

    def _counted(self, label: str, contrasts: Sequence[Contrast]) -> Iterator[str]:
        for competitor, group in groupby(contrasts, lambda contrast: contrast.theirs.label):
            compared = list(group)
            budgets = {contrast.equal.rpartition(" ")[2] for contrast in compared if contrast.test.difference.n}
            # The budget is named only if it is the same under every condition.
            same = f" at equal {budgets.pop()}" if len(budgets) == 1 and "neither" not in budgets else ""
            known = [contrast.test.difference for contrast in compared if contrast.test.difference.n]
            if not known:
                yield f"{label} against {competitor}: no seed that both finished under any condition."
                continue
            ends = (pick(known, key=lambda interval: interval.mean) for pick in (min, max))
            span = f"{' to '.join(map(self.captions.signed_mean, ends))}{self.captions.differences_in}"
            yield (
                f"{label} against {competitor}{same}, {len(self.among)} conditions: {'; '.join(self._tally(compared))} "
                f"(differences {span}).{' '.join(['', *self._flagged(compared)])}"
            )

    def _tally(self, compared: Sequence[Contrast]) -> Iterator[str]:
        for verdict, name in TALLY.items():
            held = [contrast.condition for contrast in compared if contrast.verdict == verdict]
            # That there is no win, or no loss, is part of the answer; the other verdicts are named only if they occur.
            if held or verdict in ("better", "worse"):
                yield f"{name} {self._where(held)}"

    def _flagged(self, compared: Sequence[Contrast]) -> Iterator[str]:
        """Yield a sentence per degenerate side of the comparisons."""
        sides = {(row.condition, row.label): row for one in compared for row in (one.ours, one.theirs)}
        notes = [(row.condition, row.label, f" is {_degenerate(row)}.") for row in sides.values() if row.degenerate]
        return merged(notes, self.among)

    def _where(self, held: Sequence[str]) -> str:
        # `under` returns "" for all conditions, which would leave the verdict without a place.
        if len(held) in (0, len(self.among)):
            return "under all" if held else "under none"
        return under(held, self.among).strip()


def _degenerate(row: Row, before: str = "") -> str:
    """Return the remark for a degenerate row, to stand beside its name; "" for other rows."""
    return f"{before}degenerate: {row.degenerate}" if row.degenerate else ""
