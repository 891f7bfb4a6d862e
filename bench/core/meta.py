"""The content of experiment.json, typed: what tables, figures and later launches need besides the records.

`bench/store/meta_rules.py` checks a file against these types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired

# Not pydantic's bounds: tables are made without importing pydantic, which takes longer than making them. And not
# typing's TypedDict: pydantic, with which `meta_rules` checks a file, refuses it before Python 3.12.
from annotated_types import Ge, Gt, Lt, MinLen
from typing_extensions import TypedDict

Positive = Annotated[float, Gt(0)]
Name = Annotated[str, MinLen(1)]


class MetricMeta(TypedDict):
    """The metric that configurations are chosen and compared by.

    Keys:
        key: its stem in the columns of records, e.g. "acc" in "test_acc".
        unit, scale: shown numbers are stored ones times `scale`, in `unit`.
        lowest, highest: bounds of stored numbers; null where there is none.
    """

    key: Name
    name: str
    unit: str
    scale: Positive
    higher_is_better: bool
    definition: str
    lowest: NotRequired[float | None]
    highest: NotRequired[float | None]


class SuiteMeta(TypedDict):
    """A benchmark of several tasks, e.g. GLUE, with its number of tasks."""

    name: str
    tasks: int


class TaskMeta(TypedDict):
    """A task as tables name it, with its loss and the columns of records that its table shows."""

    title: str
    loss: str
    reported: dict[str, str]
    suite: NotRequired[SuiteMeta | None]


class DataMeta(TypedDict):
    """Share of held-out data and changes of the data, unless a condition changes them."""

    validation: Annotated[float, Gt(0), Lt(1)]
    train_size: NotRequired[int | None]
    train_share: NotRequired[float | None]
    label_noise: NotRequired[float]


class Tune(TypedDict):
    """The phase of tuning: number of trials, searched space and passes of all runs, by label."""

    seeds: list[int]
    search: str
    budget: str
    trials: dict[str, int]
    spaces: dict[str, dict[str, Any]]
    # Ends of these, "smallest" or "largest", beyond which no value is valid. Absent without any.
    limits: NotRequired[dict[str, dict[str, list[str]]]]
    # Added by the plan of a launch, which knows the runs' costs: see `bench.launch.plan`.
    passes: NotRequired[dict[str, int]]


class Final(TypedDict):
    """The phase of final runs."""

    seeds: list[int]
    refit: bool


class Superseded(TypedDict):
    """A choice that a later one replaced, with its number of finished final runs."""

    condition: str
    label: str
    config: str
    finished: int


class PhasesMeta(TypedDict):
    """Both phases of an experiment with [tune] and [final]."""

    tune: Tune
    final: Final
    # Labels without a search space: they have final runs only.
    untuned: list[str]
    # Final runs of these stay on disk, but are in no table.
    superseded: NotRequired[list[Superseded]]


class Display(TypedDict):
    """[display]: what optimizers are called in tables and figures, their order and their colours."""

    names: dict[str, str]
    order: list[str]
    colours: dict[str, str]


class Presentation(TypedDict, total=False):
    """Entries that say in which way results are shown; no run depends on them."""

    display: Display
    # Lines of the user's own tables of published numbers, as `bench.store.published` reads them.
    published: list[dict[str, Any]]


class CompilingMeta(TypedDict):
    """The decision on `train.compile = "auto"`, with its reason."""

    compile: bool
    why: str


# Written as a call, since the key "from" is a keyword of Python.
PartMeta = TypedDict(
    "PartMeta", {"from": Name, "runs": Annotated[int, Ge(1)], "run_ids_sha256": str, "devices": list[str]}
)
"""One of several machines' results that `bench merge` put together."""


class Meta(TypedDict):
    """experiment.json without the checksums of its tables.

    Keys:
        of: name of the experiment's file, where the results have another name.
        labels: the optimizers in the order of the file.
        sweeps: by label, the swept hyperparameters.
        vary, conditions: the varied keys with their values, and every combination as text.
        file, overrides: the settings of the file, and those of `--set`.
        before_shards: run ids that were finished when the first `--shard` started.
    """

    name: Name
    title: str
    baseline: str
    task: str
    model: str
    labels: Annotated[list[str], MinLen(1)]
    seeds: Annotated[list[int], MinLen(1)]
    sweeps: dict[str, list[str]]
    protocol: Annotated[int, Ge(1)]
    data: DataMeta
    metric: MetricMeta
    of: NotRequired[Name]
    vary: NotRequired[dict[str, list[Any]]]
    conditions: NotRequired[list[str]]
    tasks: NotRequired[dict[str, TaskMeta]]
    notes: NotRequired[list[str]]
    # Compared with the file as it is now, to name the keys that have changed since: `config.file.changed_keys`.
    file: NotRequired[dict[str, Any]]
    overrides: NotRequired[Sequence[str]]
    compiling: NotRequired[CompilingMeta | None]
    phases: NotRequired[PhasesMeta | None]
    parts: NotRequired[list[PartMeta]]
    display: NotRequired[Display]
    # Where optimizers are shown by other names: their labels. In memory alone.
    labels_of: NotRequired[dict[str, str]]
    published: NotRequired[list[dict[str, Any]]]
    # Shards divide all other runs: if later ones were left out too, a machine's shard would change as it works.
    before_shards: NotRequired[list[str]]
