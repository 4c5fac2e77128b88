"""Tables in README.md and docs/ that nobody types: figures of runs from docs/runs.csv, recipes and alerts from the code.

    python -m tools.tables          # rewrites the pages whose tables differ; tests/test_readme.py compares them

A row of docs/runs.csv is one run. Its column `compares` says what for, as "decision: alternative", several separated by "; ",
or nothing, where a page quotes the run in words.
A table row whose first cell is a decision gets its alternatives and their figures in the two cells that follow.
"""

import csv
import itertools
import re
from pathlib import Path

from training import recipes
from training.monitor import ALERTS
from utils import ArgumentParser, atomic_path, run_cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "models/README.md"]
SHARES = "precision", "recall", "coverage"


def read_runs():
    """The rows of docs/runs.csv: [{column: text}]."""
    with open(ROOT / "docs/runs.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def compare_runs(runs):
    """{decision: (its alternatives, their figures)}, both with <br> between alternatives, in the order of the runs."""
    compared = {}
    for run in runs:
        for pair in filter(None, run["compares"].split("; ")):
            decision, alternative = pair.split(": ")
            compared.setdefault(decision, {}).setdefault(alternative, []).append(run)
    return {
        decision: ("<br>".join(alternatives), "<br>".join(map(figures, alternatives.values())))
        for decision, alternatives in compared.items()
    }


def figures(runs):
    """The KID of each run and the means of SHARES, "67, 90, 91; 0.66/0.42/0.78"; "-" for a share that not all runs have."""
    shares = []
    for name in SHARES:
        values = [float(run[name]) for run in runs if run[name]]
        shares.append(f"{sum(values) / len(values):.2f}" if len(values) == len(runs) else "-")
    return ", ".join(run["KID"] for run in runs) + "; " + "/".join(shares)


def alerts_table():
    """The alerts of training/monitor.py in Markdown: name, condition on a row of its CSV, and the message."""
    rows = [["alert", "when", "message"]]
    for name, (conditions, message) in ALERTS.items():
        when = " and ".join(f"{column} {sign} {bound}" for column, sign, bound in conditions)
        rows.append([name, when, re.sub(r"{(\w+)[^}]*}", r"`\1`", message)])
    return markdown(rows)


def markdown(rows):
    """Rows of text as a table, the first as its header."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def made_tables():
    """What `with_tables` needs: (figures of the runs, {first cell of the header: table from the code})."""
    return compare_runs(read_runs()), {"network": markdown(recipes.table()), "alert": alerts_table()}


def first_cell(line):
    return line.split("|")[1].strip()


def with_tables(text, compared, code_tables):
    """The text of a page with the tables that it should have; see `made_tables`."""
    blocks = []
    for is_table, lines in itertools.groupby(text.split("\n"), lambda line: line.startswith("|")):
        rows = list(lines)
        if is_table and first_cell(rows[0]) in code_tables:
            rows = [code_tables[first_cell(rows[0])]]
        elif is_table:
            rows = [with_figures(row, compared) for row in rows]
        blocks += rows
    return "\n".join(blocks)


def with_figures(row, compared):
    """A row of a table, whose second and third cell are the alternatives and figures if the first one is a decision."""
    cells = row.split("|")
    if first_cell(row) in compared:
        cells[2:4] = (f" {cell} " for cell in compared[first_cell(row)])
    return "|".join(cells)


def main(argv=None):
    parser = ArgumentParser("Rewrite the tables of README.md and docs/ from docs/runs.csv and the code.", "-m tools.tables")
    parser.prog = "-m tools.tables"
    parser.parse_args(argv)
    compared, code_tables = made_tables()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = with_tables(before, compared, code_tables)
        if after != before:
            with atomic_path(page) as path:
                Path(path).write_text(after, encoding="utf-8")
            print(page.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    run_cli(main)
