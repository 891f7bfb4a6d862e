"""[display] and published: checked with the file, read anew for tables, and no part of any run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.config import file
from bench.core.errors import BadValue

Write = Callable[..., Path]
Tiny = Callable[..., dict[str, Any]]
GOOD = {"names": {"sam": "SAM (ours)"}, "order": ["sam"], "colours": {"sgd": "#000000"}}
CSV = (
    "dataset,model,optimizer,metric,value,our_task,our_model,our_method\nDigits,MLP,SAM,accuracy %,95,digits,mlp,sam\n"
)


def test_what_is_shown_stands_in_the_results_and_changes_no_run(write_experiment: Write, tiny: Tiny) -> None:
    plain = file.load(write_experiment(tiny()))
    path = write_experiment(tiny({"display": GOOD, "published": ["theirs.csv"]}))
    (path.parent / "theirs.csv").write_text(CSV)
    shown = file.load(path)
    assert [run.spec.run_id for run in shown.runs] == [run.spec.run_id for run in plain.runs]
    meta = shown.meta()
    assert meta["display"] == GOOD
    assert [line["value"] for line in meta["published"]] == [95.0]
    assert not {"display", "published"} & plain.meta().keys()
    assert json.loads(json.dumps(meta)) == meta
    # What is shown later follows the file; a change of it makes no results old.
    path.write_text(path.read_text().replace("SAM (ours)", "SAM (mine)"))
    assert file.presentation_of(path)["display"]["names"] == {"sam": "SAM (mine)"}
    assert file.changed_keys(path, meta) == []


@pytest.mark.parametrize(
    ("display", "said"),
    [
        ({"order": ["smm"]}, 'display.order: no optimizer "smm"; did you mean "sam"?'),
        ({"order": ["sam", "sam"]}, "display.order: names one optimizer twice"),
        ({"names": {"sam": "sgd"}}, "display.names: two optimizers are called 'sgd'"),
        ({"names": {"sam": "SAM, ours"}}, "display.names.sam: must be 1 to 60 printable letters without , and ;"),
        ({"names": {"sam": " "}}, "display.names.sam: must be 1 to 60"),
        ({"colours": {"sam": "red"}}, "display.colours.sam: must be written as \"#0072B2\", got 'red'"),
        ({"colors": {}}, 'display.colors: unknown key; did you mean "colours"?'),
        ({"names": ["SAM"]}, "display.names: must be a valid table"),
    ],
)
def test_a_wrong_display_is_told_before_anything_runs(
    write_experiment: Write, tiny: Tiny, display: Mapping[str, Any], said: str
) -> None:
    path = write_experiment(tiny({"display": display}))
    for read in (file.load, file.presentation_of):
        with pytest.raises(BadValue) as error:
            read(path)
        assert said in str(error.value)


def test_a_published_table_that_is_not_there(write_experiment: Write, tiny: Tiny) -> None:
    path = write_experiment(tiny({"published": ["none.csv"]}))
    with pytest.raises(BadValue, match=r"published: none\.csv: cannot be read"):
        file.load(path)
