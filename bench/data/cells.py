"""Cells of users' tables: numbers, several spellings of one value, and text that is not a word."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

Decimal = Literal[".", ","]

MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
MONTH_NUMBER = "(?:0?[1-9]|1[0-2])"
WEEKDAY = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?[,.]? )?"
DIGITS = r"[+-]?\d[\d.,]*"
CURRENCY = "(?:[$€£¥]|EUR|USD|GBP|JPY|CHF|CNY)"
EXPONENT = r"(?:e[+-]?\d+)?"
NO_WORDS = {
    # 1.234,5 and 0,5; with commas between thousands 1,234.5; two dots can only be between thousands: 1.234.567.
    "a number with a decimal comma": (
        rf"[+-]?\d*(?:\.\d{{3}})*,\d+{EXPONENT}|[+-]?\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?"
        r"|[+-]?\d{1,3}(?:\.\d{3}){2,}"
    ),
    # Only where decimal = ",": with decimal = "." it is a number.
    "a number with a decimal point": rf"[+-]?(?:\d+\.\d*|\.\d+){EXPONENT}",
    # 1 234 567,8 with any of the blanks that typesetters take, 1'234.5 and 1_234.
    "a number with gaps between thousands": r"[+-]?\d{1,3}(?:[ \u00a0\u2009\u202f'’_]\d{3})+(?:[.,]\d+)?",
    # 2024-01-31 with any time behind it, 31.1.24, 12:30:05 pm, 3 Mar 2024, Mon, March 3, 2024; without a day 2024-01,
    # 01/2024, Jan-24; weeks and quarters.
    "a date or a time": (
        r"\d{4}([-/.])\d{1,2}\1\d{1,2}(?:[T ].*)?|\d{1,2}([-/.])\d{1,2}\2(?:\d{2}|\d{4})(?: .*)?"
        r"|\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[ap]m)?(?:Z|[+-]\d{2}:?\d{2})?"
        rf"|{WEEKDAY}(?:\d{{1,2}}[ .-]+{MONTH}[ ,.-]+\d{{2,4}}|{MONTH} \d{{1,2}},? \d{{4}})(?: .*)?"
        rf"|\d{{4}}[-/]{MONTH_NUMBER}|{MONTH_NUMBER}[-/]\d{{4}}|{MONTH}[ -]+(?:\d{{4}}|'?\d{{2}})|\d{{4}}[ -]+{MONTH}"
        r"|\d{4}-?W\d{2}(?:-?\d)?|\d{4}[ -]?Q[1-4]|Q[1-4][ -]?\d{4}"
    ),
    "a number with a sign": rf"{CURRENCY} ?{DIGITS}|{DIGITS} ?(?:%|{CURRENCY})",
}
"""Patterns of cells that are neither words nor readable numbers, by a description of the cell."""

REMEDIES = {
    "a number with a decimal comma": 'set task.decimal = "," (and write thousands without commas)',
    "a number with a decimal point": 'write all numbers with the comma of task.decimal = ","',
    "a number with gaps between thousands": "write thousands without anything between them",
    "a date or a time": 'leave the column out with task.drop = ["{column}"], or make numbers of it (days, hours)',
    "a number with a sign": "write the number alone",
}

LARGEST = 1e100
"""Larger numbers overflow where a column's deviation is computed; mostly they stand for a missing value."""

TRUTH = {"false": 0.0, "true": 1.0}
# A column's name that ends in a word for numbers of rows: id, row_nr, user id; or userId.
NAMED_LIKE_ID = re.compile(r"(?:^|[\W_])(?:id|idx|index|key|nr|no|num|number|row|uuid)$|[a-z]I[dD]$", re.ASCII)


def number(cell: str, decimal: Decimal = ".") -> float | None:
    """Return the number that a cell is, None if it is none or is not finite."""
    if "_" in cell:  # Python reads 1_000 as 1000, a table's author hardly does
        return None
    cell = cell.replace("−", "-")  # the minus of word processors
    if decimal == ",":
        whole, comma, fraction = cell.partition(",")
        # Dots can only be between thousands here: any other place of a dot is refused, not guessed.
        if "." in whole and not re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+", whole):
            return None
        cell = whole.replace(".", "") + (f".{fraction}" if comma else "")
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def no_word(cell: str) -> str | None:
    """Return which of NO_WORDS a cell is; None if it is none of them, or a number that no float can hold."""
    kind = next((kind for kind, pattern in NO_WORDS.items() if re.fullmatch(pattern, cell, re.IGNORECASE)), None)
    return None if kind == "a number with a decimal point" and number(cell) is None else kind


def spellings(cells: Sequence[str], decimal: Decimal = ".") -> dict[str, str]:
    """Return the one spelling for each different cell: the commonest of those that mean the same.

    Numbers that are equal mean the same (0 and 0.0), so do truth values in upper and lower case; beside numbers alone,
    false is 0 and true is 1.
    """
    counts = Counter(cells)
    numbers = {cell: number(cell, decimal) for cell in counts}
    # true and false are 1 and 0 only beside numbers; a column of words may have them as words.
    only_numbers = all(numbers[cell] is not None or cell.lower() in TRUTH for cell in counts)
    beside_numbers = only_numbers and any(value is not None for value in numbers.values())
    alike: dict[Hashable, list[str]] = defaultdict(list)
    for cell, value in numbers.items():
        truth = cell.lower() if cell.lower() in TRUTH else None
        if truth and beside_numbers:
            value = TRUTH[truth]
        # Equal keys mean the same: a number by its value, a truth value without its case, a word as it is.
        alike[value if value is not None else ("truth", truth) if truth else cell].append(cell)
    chosen = dict[str, str]()
    for group in alike.values():
        # A spelling that is a number comes first, then the commonest, the shortest, the first by letters.
        best = min(group, key=lambda cell: (numbers[cell] is None, -counts[cell], len(cell), cell))
        chosen |= dict.fromkeys(group, best)
    return chosen


def size(cell: str, decimal: Decimal = ".") -> float | None:
    """Return the sort key of a cell among numbers: the number, or 0 and 1 for false and true."""
    return TRUTH.get(cell.lower(), number(cell, decimal))


# ---- remarks for the user ------------------------------------------------------------------------------------


def on_spellings(column: str, chosen: dict[str, str]) -> str:
    """Return a sentence on values that were spelled in several ways, or may have been; "" if there are none."""
    taken = [f'"{cell}" is taken for "{best}"' for cell, best in sorted(chosen.items()) if cell != best]
    by_case = defaultdict(list)
    for name in sorted(set(chosen.values())):
        by_case[name.casefold()].append(f'"{name}"')
    differ = [f"{' and '.join(names)} differ in case alone" for names in by_case.values() if len(names) > 1]
    said = [*taken, *differ]
    return f'In column "{column}" {", ".join(said)}.' if said else ""


def on_ids(column: str, cells: Iterable[str], values: Iterable[float] | None) -> str:
    """Return a sentence on a column that seems to number or name the rows; "" if it does not.

    Args:
        cells: of all rows.
        values: what they are, for a column of numbers.
    """
    cells = list(cells)
    if len(set(cells)) < len(cells):
        return ""
    if values is not None:
        values = sorted(values)
        whole = all(value.is_integer() for value in values) and len(set(values)) == len(values)
        # Row numbers have no gaps; a column that is called an id may have some.
        without_gaps = whole and values[-1] - values[0] == len(values) - 1
        if not (without_gaps or (whole and NAMED_LIKE_ID.search(column))):
            return ""
    return (
        f'Column "{column}" has a different value in every row, like a row number or a name, and is used as an input. '
        f'To leave it out, set task.drop = ["{column}"].'
    )


def on_filled(filled: dict[str, int]) -> str:
    """Return a sentence on how many empty cells of which columns were filled; "" if none were."""
    counts = [f'{count} in "{column}"' for column, count in filled.items() if count]
    total = sum(filled.values())
    return f"{total} empty {'cell was' if total == 1 else 'cells were'} filled: {', '.join(counts)}." if total else ""
