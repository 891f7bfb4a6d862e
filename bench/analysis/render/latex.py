"""A table in LaTeX: booktabs, numbers aligned by siunitx; rotated if it is wide, over several pages if it is long."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bench.analysis.render.table import Table

WIDTH, HEIGHT = 345.0, 550.0  # points of the text on a page of the class article, the narrowest there is
WIDEST = 1.25  # times that width: up to this a table is made smaller, a wider one is turned
LETTER, GAP, LINE = 4.6, 8.0, 11.5  # points, in \small
# A cell that siunitx can align: "<0.001", "+1,234.5" or "95.20 ± 0.31", with marks of footnotes behind it.
NUMBER = re.compile(
    r"(?P<less><?)(?P<sign>[+-]?)(?P<whole>[\d,]+)(?:\.(?P<part>\d+))?(?: ± (?P<error>[\d.,]+))?(?P<mark>[†‡]*)"
)
BLANK = ("", "–")

# Translated in one pass: replaced one after the other, the backslash of one escape would be escaped by the next.
TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "†": r"$^\dagger$",
        "‡": r"$^\ddagger$",
        "§": r"\S{}",
        "–": "--",
        "“": "``",
        "”": "''",
        "≥": r"$\geq$",
    }
)


def latex(table: Table, heads: Sequence[Sequence[str]]) -> str:
    """Return the table as a LaTeX float, or as a longtable if a float would not fit on a page.

    The table is fitted to the text width of the class article: a table up to a quarter wider is made smaller, a wider
    one is turned on its side. The first line names the packages that the table needs.

    Args:
        heads: the lines of each column's header, without those of the condition.
    """
    kinds, head, body = _grid(table, heads)
    columns = [list(column) for column in zip(*(row for _, rows in table.blocks() for row in rows), strict=True)]
    # An estimate from the number of letters: the true width is known to TeX alone.
    width = sum(max(map(len, [*head, *cells])) * LETTER + GAP for head, cells in zip(heads, columns, strict=True))
    title = escape(table.title)
    # The title alone stands in a list of tables.
    caption = rf"\caption[{{{title}}}]{{\textbf{{{title}.}} {escape(' '.join(table.caption))}}}"
    label = rf"\label{{tab:{_as_key(table.experiment)}-{table.name}}}"
    notes = [rf"    {escape(note)}\par" for note in [*table.answer, *table.footnotes]]
    turned = width > WIDEST * WIDTH
    across, down = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
    texts = [table.title + " ".join(table.caption), *table.answer, *table.footnotes]
    # -(-a // b) rounds up. Texts wrap, a row is a line, a block needs two more; the rest is for header and rules.
    lines = sum(-(-len(text) * LETTER // across) for text in texts) + len(table.rows) + 2 * len(table.blocks()) + 5
    # A float cannot go on to another page.
    if lines * LINE > down:
        return _long(caption, label, kinds, head, body, notes, turned=turned)
    return _float(caption, label, kinds, head, body, notes, turned=turned)


def bare(table: Table, heads: Sequence[Sequence[str]]) -> str:
    """Return the tabular alone, for a float, a caption and a size of one's own."""
    kinds, head, body = _grid(table, heads)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,siunitx}",
            r"\begingroup",
            SETUP,
            *_tabular(kinds, head, body),
            r"\endgroup",
            "",
        ]
    )


def _grid(table: Table, heads: Sequence[Sequence[str]]) -> tuple[list[str], str, str]:
    """Return the types of the columns, the line of heads, and the lines of the body."""
    columns = zip(*(row for _, rows in table.blocks() for row in rows), strict=True)
    # The first column is the optimizer's name: text, also if every name looks like a number.
    kinds = [_kind(column) if place else "l" for place, column in enumerate(columns)]
    shown = [_head(head, kind) for head, kind in zip(heads, kinds, strict=True)]
    body = "\n    \\addlinespace\n".join(
        "\n".join([*heading, *(rf"    {_row(row, kinds)} \\" for row in rows)])
        for heading, rows in _blocks(table, len(heads))
    )
    return kinds, rf"    {' & '.join(shown)} \\", body


def _tabular(kinds: Sequence[str], head: str, body: str) -> list[str]:
    return [
        rf"  \begin{{tabular}}{{@{{}}{''.join(kinds)}@{{}}}}",
        r"    \toprule",
        head,
        r"    \midrule",
        body,
        r"    \bottomrule",
        r"  \end{tabular}",
    ]


# Commas of thousands are skipped when siunitx reads a number; it puts in its own.
SETUP = (
    r"  \sisetup{separate-uncertainty, table-align-uncertainty=false, input-decimal-markers={.}, input-ignore={,}, "
    r"group-separator={,}, group-minimum-digits=4, retain-explicit-plus}"
)


def _float(
    caption: str, label: str, kinds: Sequence[str], head: str, body: str, notes: Sequence[str], *, turned: bool
) -> str:
    environment = "sidewaystable" if turned else "table"
    return "\n".join(
        [
            rf"% needs \usepackage{{booktabs,siunitx,adjustbox{',rotating' if turned else ''}}}",
            rf"\begin{{{environment}}}{'' if turned else '[htbp]'}",
            r"  \centering\small\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
            SETUP,
            f"  {caption}",
            f"  {label}",
            # Only a table that is wider than the text is made smaller.
            r"  \begin{adjustbox}{max width=\linewidth}",
            *_tabular(kinds, head, body),
            r"  \end{adjustbox}",
            *([r"  \par\smallskip", r"  \begin{minipage}{\linewidth}\footnotesize"] if notes else []),
            *([*notes, r"  \end{minipage}"] if notes else []),
            rf"\end{{{environment}}}",
            "",
        ]
    )


def _long(
    caption: str, label: str, kinds: Sequence[str], head: str, body: str, notes: Sequence[str], *, turned: bool
) -> str:
    return "\n".join(
        [
            rf"% needs \usepackage{{booktabs,siunitx,longtable{',pdflscape' if turned else ''}}}",
            *([r"\begin{landscape}"] if turned else []),
            rf"\begingroup\{'footnotesize' if turned else 'small'}\setlength{{\tabcolsep}}{{4pt}}"
            # Captions of a longtable are 4 inches wide unless a length is set.
            r"\setlength{\LTcapwidth}{\linewidth}\setlength{\parindent}{0pt}",
            SETUP,
            rf"  \begin{{longtable}}{{@{{}}{''.join(kinds)}@{{}}}}",
            f"  {caption}{label}" + r" \\",
            r"    \toprule",
            head,
            r"    \midrule",
            r"  \endfirsthead",
            r"    \toprule",
            head,
            r"    \midrule",
            r"  \endhead",
            r"    \bottomrule",
            r"  \endfoot",
            body,
            r"  \end{longtable}",
            *([r"  \footnotesize", *notes] if notes else []),
            r"\endgroup",
            *([r"\end{landscape}"] if turned else []),
            "",
        ]
    )


def _blocks(table: Table, columns: int) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield every block with its condition as a heading, since a further column would be too wide for a page."""
    for condition, rows in table.blocks():
        named = rf"    \multicolumn{{{columns}}}{{@{{}}l@{{}}}}{{\emph{{{escape(condition)}}}}} \\"
        yield ([named] if condition else []), rows


def _kind(cells: Sequence[str]) -> str:
    """Return the column type: S, with room for the widest, if all non-empty cells are numbers; else text."""
    numbers = [NUMBER.fullmatch(cell) for cell in cells if cell not in BLANK]
    parsed = [number for number in numbers if number]
    if not parsed or len(parsed) < len(numbers):
        return "r"
    less, sign = (max((number[part] for number in parsed), key=len) for part in ("less", "sign"))
    whole = max(len(number["whole"].replace(",", "")) for number in parsed)
    part = max(len(number["part"] or "") for number in parsed)
    error = max(len((number["error"] or "").replace(",", "").replace(".", "")) for number in parsed)
    digits = f"{whole}{f'.{part}' * bool(part)}{f'({error})' * bool(error)}"
    # Room for the most digits on both sides of the point, so that the points of all rows stand below each other.
    return f"S[table-format={less}{sign and '+'}{digits}]"


def _row(cells: Sequence[str], kinds: Sequence[str]) -> str:
    return " & ".join(_cell(cell, kind) for cell, kind in zip(cells, kinds, strict=True))


def _cell(cell: str, kind: str) -> str:
    """Return a number as siunitx reads it, and anything else as text, in braces if the column is of numbers."""
    number = NUMBER.fullmatch(cell)
    if not kind.startswith("S"):
        return escape(cell)
    if number is None:
        # siunitx takes what is in braces for text.
        return f"{{{escape(cell)}}}"
    plain = cell.removesuffix(number["mark"]) if number["mark"] else cell
    mark = f" {{{escape(number['mark'])}}}" if number["mark"] else ""
    return plain.replace(" ± ", r" \pm ").replace("<", "< ") + mark


def _head(lines: Sequence[str], kind: str) -> str:
    text = r" \\ ".join(map(escape, lines))
    text = rf"\shortstack[r]{{{text}}}" if len(lines) > 1 else text
    return f"{{{text}}}" if kind.startswith("S") else text


def _as_key(name: str) -> str:
    """Return a name in a form that a LaTeX label accepts, where escapes do not work."""
    return re.sub(r"[^\w.:+=,-]+", "-", name)


def escape(text: str) -> str:
    """Return text for LaTeX: special characters escaped, symbols in math mode, minus signs instead of hyphens."""
    # A hyphen before a digit is a minus sign, but not within a name such as sgd-2x.
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", text.translate(TEX))
