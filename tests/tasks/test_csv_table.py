"""Tables of a user's own: what becomes of each column, and which line is at fault where something is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core.errors import BenchError
from bench.tasks.csv_table import CsvTable

ROWS = [f"{n},{n % 5}.5,{'red' if n % 3 else 'blue'},{'yes' if n % 2 else 'no'}" for n in range(30)]
HEADER = "number,size,colour,bought"

Make = Callable[..., CsvTable]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(header, rows, target="bought", ...): the task of a file of these lines."""

    def build(header: str = HEADER, rows: list[str] = ROWS, target: str = "bought", **settings: Any) -> CsvTable:
        path = tmp_path / "own.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return CsvTable(path=str(path), target=target, **settings)

    return build


def everything(task: CsvTable) -> tuple[torch.Tensor, torch.Tensor]:
    splits = task.load()
    return torch.cat([split.inputs for split in splits]), torch.cat([split.targets for split in splits])


def test_numbers_are_standardised_by_the_training_rows_and_words_are_0_or_1(make: Make) -> None:
    task = make()
    train, test = task.load()
    assert task.class_names == ["no", "yes"]
    assert (task.input_shape, task.num_outputs, len(train), len(test)) == ((4,), 2, 24, 6)
    assert train.inputs.dtype == torch.float32
    numbers = train.inputs[:, :2].double()
    assert numbers.mean(0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert numbers.std(0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-6)
    x, y = everything(task)
    row = ((x[:, 0] - x[:, 0].min()) / (x[:, 0].max() - x[:, 0].min()) * 29).round().int()  # which of ROWS it is
    assert sorted(row.tolist()) == list(range(30))
    assert torch.equal(x[:, 2], (row % 3 == 0).float()), "blue"
    assert torch.equal(x[:, 3], (row % 3 != 0).float()), "red"
    assert torch.equal(y, (row % 2).long())


def test_classes_that_are_numbers_are_in_the_order_of_numbers(make: Make) -> None:
    assert make("x,y", [f"{n},{(2, 10, 1)[n % 3]}" for n in range(30)], "y").class_names == ["1", "2", "10"]


def test_a_value_that_only_test_rows_have_is_all_0(make: Make) -> None:
    _, test = make().load()
    row = int(test.inputs[0, 0] * 0) + _rows_of_test(make)[0]
    rows = list(ROWS)
    rows[row] = rows[row].replace("red", "violet").replace("blue", "violet")
    task = make(rows=rows)
    assert task.input_shape == (4,)
    assert task.load()[1].inputs[0, 2:].tolist() == [0, 0]


def _rows_of_test(make: Make) -> list[int]:
    task = make("id,bought", [f"{n},{'yes' if n % 2 else 'no'}" for n in range(30)])
    x = torch.cat([split.inputs for split in task.load()])[:, 0]
    order = x.argsort()
    position = torch.empty_like(order)
    position[order] = torch.arange(30)
    return position[24:].tolist()


def test_numbers_that_stand_for_categories_and_columns_left_out(make: Make) -> None:
    task = make(categorical=["size"], drop=["number", "colour"])
    assert task.input_shape == (5,)
    assert set(everything(task)[0].flatten().tolist()) == {0.0, 1.0}


def test_empty_cells_are_filled_only_if_that_is_said(make: Make) -> None:
    rows = [*ROWS, "NA,1.5,red,yes", "3,2.5,,no", "4,?,red,yes"]
    with pytest.raises(BenchError, match=r'own.csv, line 32, column "number": empty; .* task.missing = "fill"'):
        make(rows=rows)
    task = make(rows=rows, missing="fill")
    x, _ = everything(task)
    assert task.input_shape == (5,)  # one more category: none
    assert x.isfinite().all()
    assert x[:, 2].sum() == 1
    assert (x[:, :2] == 0).sum(0).tolist() == [1, 1], "the mean"


def test_regression_standardises_the_target_and_scores_r2(make: Make) -> None:
    task = make("x,y", [f"{n},{3 * n + 100}" for n in range(30)], "y", regression=True)
    train, test = task.load()
    assert (task.num_outputs, task.metric.key, train.targets.dtype) == (1, "r2", torch.float32)
    assert train.targets.mean().item() == pytest.approx(0, abs=1e-6)
    outputs = test.targets[:, None]
    assert task.score(outputs, test.targets) == 1
    assert task.score(torch.zeros_like(outputs) + test.targets.mean(), test.targets) == pytest.approx(0, abs=1e-6)
    assert task.losses(outputs + 2, test.targets).tolist() == pytest.approx([4.0] * len(test))


def test_other_separators_quotes_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    lines = [f'{n}\t"a ""word"""\t{"yes" if n % 2 else "no"}' for n in range(12)]
    path.write_text("\ufeffx\tw\ty\r\n" + "\r\n\r\n".join(lines), encoding="utf-8")
    task = CsvTable(path=str(path), target="y", separator="\t")
    assert task.input_shape == (2,)
    assert task.class_names == ["no", "yes"]


def test_a_file_that_changes_is_read_again(make: Make) -> None:
    assert make().num_outputs == 2
    assert make(rows=[*ROWS, *["1,2,red,maybe"] * 3]).num_outputs == 3


# ---- one value in several spellings ------------------------------------------------------------------------------


def labelled(labels: list[str]) -> list[str]:
    return [f"{n * n % 31},{labels[n % len(labels)]}" for n in range(40)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0", "0.0", "True", "true"], ["0", "True"]),
        (["1", "1", "1.0", "2", "10", "1e1"], ["1", "2", "10"]),
        (["TRUE", "false", "False", "False"], ["False", "TRUE"]),
        (["yes", "no", "true", "True", "True"], ["True", "no", "yes"]),
    ],
)
def test_a_class_in_several_spellings_is_one_class(make: Make, labels: list[str], names: list[str]) -> None:
    task = make("x,y", labelled(labels), "y")
    assert task.class_names == names
    assert 'In column "y" ' in task.note
    x, y = everything(task)
    assert torch.bincount(y).sum() == len(x) == 40


def test_classes_that_differ_in_case_alone_are_told_and_kept(make: Make) -> None:
    """a and A may be two letters; Yes and yes hardly are two answers."""
    task = make("x,y", labelled(["Yes", "yes", "no"]), "y")
    assert task.class_names == ["Yes", "no", "yes"]
    assert task.note == 'In column "y" "Yes" and "yes" differ in case alone.'


def test_a_category_in_several_spellings_is_one_input(make: Make) -> None:
    rows = [f"{('true', 'True', 'False')[n % 3]},{('1', '1.0', '2')[n % 3]},{'ab'[n % 2]}" for n in range(30)]
    task = make("flag,kind,y", rows, "y", categorical=["kind"])
    assert task.input_shape == (4,)
    assert 'In column "kind" "1.0" is taken for "1".' in task.note
    assert make("flag,kind,y", [row.replace("true", "True") for row in rows], "y", drop=["kind"]).note == ""


# ---- what looks like words ---------------------------------------------------------------------------------------


def with_column(cells: list[str]) -> list[str]:
    return [f"{cells[n % len(cells)]};{'yes' if n % 2 else 'no'};{n * 7 % 30}" for n in range(30)]


def test_decimal_commas_are_numbers_if_that_is_said(make: Make) -> None:
    rows = with_column(["1,5", "2", "-0,25", "1.200,5", "1e2"])
    with pytest.raises(
        BenchError, match=r'line 2, column "x": "1,5" is not a word but a number with a decimal comma: set'
    ):
        make("x;bought;z", rows, separator=";")
    x, _ = everything(make("x;bought;z", rows, separator=";", decimal=","))
    dotted = [row.replace("1.200,5", "1200.5").replace(",", ".") for row in rows]
    assert torch.equal(x, everything(make("x;bought;z", dotted, separator=";"))[0])


def test_a_target_with_decimal_commas(make: Make) -> None:
    rows = [f"{n};{n},5" for n in range(30)]
    task = make("x;y", rows, "y", separator=";", decimal=",", regression=True)
    assert task.load()[0].targets.mean().item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(
        BenchError, match=r'"0,5" is not a number, which .* but a number with a decimal comma: set task.dec'
    ):
        make("x;y", rows, "y", separator=";", regression=True)
    with pytest.raises(
        BenchError, match=r'task.regression = true; "0,5" is not a number but a number with a decimal comma'
    ):
        make("x;y", rows, "y", separator=";")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            ["2024-01-31", "2023-12-01 10:00", "unknown"],
            r'"2024-01-31" is not a word but a date or a time: leave the col',
        ),
        (["31.01.2024", "1.2.24"], r'task.drop = \["x"\], or make numbers of it .*; if they are categories, set'),
        (["12 Jan 2024", "Feb 3, 2024"], r'"12 Jan 2024" is not a word but a date'),
        (["10:30", "23:59:59"], r'"10:30" is not a word but a date or a time'),
        (["12%", "3.5 %"], r'"12%" is not a word but a number with a sign: write the number alone'),
        (["$1200", "€ 3"], r'"\$1200" is not a word but a number with a sign'),
        (["3", "4", "5", "1,5"], r'"1,5" is not a number like most of the column but a number with a decimal comma'),
        (["1_000", "2000", "3000"], r'"1_000" is not a number like most of the column but a number with gaps'),
        (["1_000", "2_000"], r'"1_000" is not a word but a number with gaps between thousands'),
        (["1O", "2", "3"], r'"1O" is not a number like most of the column; if they are categories'),
        (["1,5e3", "2,5e-2"], r'"1,5e3" is not a word but a number with a decimal comma'),
        (["1.234.567", "2.345.678"], r'"1.234.567" is not a word but a number with a decimal comma'),
        (["1 234", "10 000,5"], r'"1 234" is not a word but a number with gaps between thousands: write thousands'),
        (["1'234", "1\u202f234"], r'"1\'234" is not a word but a number with gaps between thousands'),
        (["EUR 5", "6.50 USD"], r'"EUR 5" is not a word but a number with a sign'),
        (["2024-01", "01/2024", "Jan 2024", "Feb-24"], r'"2024-01" is not a word but a date or a time'),
        (["Mon, 3 Mar 2024", "Tuesday March 4 2024"], r'"Mon, 3 Mar 2024" is not a word but a date'),
        (["2024-W05", "2024-Q1", "10:30+01:00"], r'"2024-W05" is not a word but a date'),
    ],
)
def test_dates_and_amounts_are_no_words(make: Make, cells: list[str], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        make("x;bought;z", with_column(cells), separator=";")
    task = make("x;bought;z", with_column(cells), separator=";", categorical=["x"])
    assert task.input_shape == (len(cells) + 1,)


def test_numbers_with_a_point_are_no_words_beside_a_decimal_comma(make: Make) -> None:
    rows = with_column(["1.5", "2.25", "3"])
    with pytest.raises(BenchError, match=r'"1.5" is not a word but a number with a decimal point: write all numbers'):
        make("x;bought;z", with_column(["1.5", "2.25"]), separator=";", decimal=",")
    with pytest.raises(BenchError, match=r'"1.5" is not a word but a number with a decimal point'):
        make("x;bought;z", rows, separator=";", decimal=",")
    assert make("x;bought;z", rows, separator=";").input_shape == (2,)


def test_the_minus_of_word_processors_is_a_minus(make: Make) -> None:
    rows = with_column(["−1.5", "2", "−3"])
    plain = [row.replace("−", "-") for row in rows]
    assert torch.equal(*(everything(make("x;bought;z", each, separator=";"))[0] for each in (rows, plain)))


@pytest.mark.parametrize(
    "cells",
    [
        *(["3-4", "5-6"], ["v1.2", "v1.3"], ["A,B", "C"], ["may", "june"], ["1st", "2nd"]),
        *(["2023/24", "2024/25"], ["4x4", "3 BHK"], ["1.2.3", "1.2.4"], ["Sunday", "Q1"], ["mark 12", "junior 10"]),
    ],
)
def test_words_with_digits_and_marks_are_words(make: Make, cells: list[str]) -> None:
    task = make("x;bought;z", with_column(cells), separator=";")
    assert task.input_shape == (len(cells) + 1,)


# ---- what is told ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "is_told"),
    [
        ("row", lambda n: n + 100, True),
        ("customer_id", lambda n: 1000 + n * n, True),
        ("customerId", lambda n: 1000 + n * n, True),
        ("name", lambda n: f"name {n}", True),
        ("squared", lambda n: n * n, False),
        ("customer_id", lambda n: n % 20, False),
        ("id", lambda n: n + 0.5, False),
    ],
)
def test_a_column_that_numbers_or_names_the_rows_is_told(
    make: Make, column: str, value: Callable[[int], object], is_told: bool
) -> None:
    rows = [f"{value(n)},{n % 7},{'yes' if n % 2 else 'no'}" for n in range(30)]
    said = f'Column "{column}" has a different value in every row'
    task = make(f"{column},x,y", rows, "y")
    assert (said in task.note) == is_told
    assert make(f"{column},x,y", rows, "y", drop=[column]).note == ""


def test_how_many_cells_were_filled_is_told_at_the_start(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS, "NA,1.5,red,yes", "?,2.5,,no", "4,0.5,red,yes"]
    task = make(rows=rows, missing="fill")
    assert task.note == '3 empty cells were filled: 2 in "number", 1 in "colour".'
    task.fetch()
    assert capsys.readouterr().err.endswith(f"own.csv: {task.note}\n")
    make(drop=["number"]).fetch()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([*ROWS, "1,2"], {}, r"own.csv, line 32: 2 cells, but the header has 4"),
        ([*ROWS, "1,2,red,"], {}, r'line 32, column "bought": the target is missing'),
        ([*ROWS, "1O,2,red,yes"], {}, r'line 32, column "number": "1O" is not a number like most of the column'),
        ([*ROWS, "inf,2,red,yes"], {}, r'line 32, column "number": "inf" is not a number'),
        ([*ROWS, "1.5e999,2,red,yes"], {}, r'"1.5e999" is not a number like most of the column; if they are'),
        ([*ROWS, "1.79e308,2,red,yes"], {}, r'line 32, column "number": "1.79e308" is too large to compute with'),
        (
            [*ROWS, "1,-1e200,red,yes"],
            {"regression": True, "target": "size"},
            r'line 32, column "size": "-1e200" is too large to compute with; if it stands for a missing value, empty',
        ),
        (ROWS, {"target": "bougt"}, r'no column "bougt"; did you mean "bought"\?'),
        (ROWS, {"drop": ["colr"]}, r'no column "colr"; did you mean "colour"\?'),
        (ROWS, {"target": "number"}, r'"number" has 30 different values in 30 rows, .* task.regression = true'),
        (
            ROWS,
            {"regression": True},
            r'line 2, column "bought": "no" is not a number, which regression = true needs',
        ),
        ([*ROWS, "1,2,red,maybe"], {}, r'1 of class "maybe"; at least 3 are needed'),
        ([row.replace(",no", ",yes") for row in ROWS], {}, r'column "bought" has one class only, "yes"'),
        (ROWS, {"drop": ["number", "size", "colour"]}, r"no column beside the target to learn from"),
        ([], {}, r"own.csv has no rows under its header"),
        ([*ROWS, '1,2,"red,yes'], {}, r"own.csv, line 32: unexpected end of data"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    make: Make, rows: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        make(rows=rows, **settings)


def test_a_column_of_names_is_no_category(make: Make) -> None:
    rows = [f"{row.rpartition(',')[0]},name {n},{row.rpartition(',')[2]}" for n, row in enumerate(ROWS * 3)]
    with pytest.raises(BenchError, match=r'"name" has \d\d different words .* task.drop = \["name"\]'):
        make("number,size,colour,name,bought", rows)


def test_names_of_columns_are_there_and_different(make: Make) -> None:
    with pytest.raises(BenchError, match=r"a unique name in the first line; \['size'\]"):
        make("size,size,colour,bought")
    with pytest.raises(BenchError, match="one has none"):
        make("size,,colour,bought")


def test_no_file_names_those_beside_it(make: Make, tmp_path: Path) -> None:
    make()
    with pytest.raises(BenchError, match=r'owm.csv is not a file; did you mean "own.csv"\?'):
        CsvTable.files(tmp_path / "owm.csv")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    with pytest.raises(BenchError, match=r"own.csv cannot be read"):
        CsvTable(path=str(path), target="y")
