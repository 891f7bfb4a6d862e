"""The tables of an experiment: by task, results, losses, cost, budgets, statistics and every configuration."""

from __future__ import annotations

from dataclasses import replace

from bench.analysis.answer import answer
from bench.analysis.render.table import Table
from bench.analysis.study import Study
from bench.analysis.tables import (
    bases,
    budgets,
    by_task,
    classes,
    hyperparameters,
    main,
    published,
    sharpness,
    statistics,
    time_to_target,
    tuning,
)
from bench.store.selection import phased


def build(study: Study) -> list[Table]:
    """Return the tables of an experiment, in this order.

    "tasks" (of several tasks), "results", "losses", "cost", "budgets" and "statistics" (of several optimizers), "bases"
    (if methods wrap more than one), "target" (if there is a target), "tuning" (if that was a phase of its own), "sweep"
    (if anything is swept), "classes" (if a task reports them), "sharpness" (if it was measured), "published-STYLE" (of
    tables that the experiment's file names) and "hyperparameters".

    Unfinished experiments give tables of the finished runs: incomplete rows carry a dagger and a footnote.
    """
    tables = [by_task.table(study)] if len(study.captions.varied.get("task", [])) > 1 else []
    # The answer is the table of results in words, so it stands with it.
    tables += [replace(main.results(study), answer=answer(study)), main.losses(study), main.cost(study)]
    # Both tables compare finished runs of several optimizers.
    if study.contrasts and any(row.done for row in study.chosen):
        tables += [budgets.table(study), statistics.table(study)]
        tables += [bases.table(study)] if bases.several(study) else []
        # Without a validation score of the baseline there is no target, and the table has no rows.
        tables += [one for one in [time_to_target.table(study)] if one.rows]
    if phased(study.meta):
        tables.append(tuning.table(study))
    if study.meta["sweeps"]:
        tables.append(main.sweep(study))
    tables += classes.tables(study)
    return [*tables, *sharpness.tables(study), *published.own_tables(study), hyperparameters.table(study)]


def to_target(study: Study, shown: float) -> Table:
    """Return the table "target" for a user's own score, in the unit that tables show."""
    return time_to_target.table(study, shown / study.captions.scale)
