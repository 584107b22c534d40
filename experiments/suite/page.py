"""docs/experiments.md, made of the results of the experiments: no figure in it is typed by hand."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.suite.frame import PLOT, TABLE, Results
from specjax.atomic import atomic_file

QUESTIONS = {
    "adapt": "Does LoRA adapt the model?",
    "placement": "Which placement is best?",
    "xp": "Does alignment with Gaia XP help?",
    "labels": "How many labels are needed?",
    "factors": "Do rank, rates and starts of the factors matter?",
    "dose": "How long should the backbone be trained?",
    "failure": "How well does it do on metal-poor stars?",
    "mending": "What helps there?",
    "shifts": "Does it correct instrument flaws that preprocessing is not told of?",
    "time": "How long does it take?",
}
"""What the head of the page answers, by the key of `Results.answers`."""

_HEAD = """# Experiments

`make experiments` (`python -m experiments.suite`) runs these experiments on the models that ship and writes
this page. Every figure in it comes from the tables of that run, whose folders hold them as `table.json` and
`table.ecsv`, with the plots as PNG and PDF. Intervals are 95% intervals over stars, from a bootstrap that
draws the same stars for all seeds. The strongest baseline of a table is the method without a foundation model
that has the smallest scatter on the same stars and labels. The paper is arXiv 2507.20972.
"""


def write_page(page: Path, runs: Path, names: Sequence[str], failures: Mapping[str, str]) -> None:
    """Write the page and copy the plots into the folder beside it that has its name.

    Args:
        page: Markdown file to write, such as docs/experiments.md.
        runs: folder with one folder of results for each experiment.
        names: experiments, in the order of their sections.
        failures: by name, the error of those that failed in this run.
    """
    found = {name: _results(runs / name) for name in names if name not in failures}
    done = {name: one for name, one in found.items() if one is not None}
    plots = page.with_suffix("")
    for name in done:
        if (plot := runs / name / f"{PLOT}.png").exists():
            with atomic_file(plots / f"{name}.png") as temporary:
                shutil.copyfile(plot, temporary)
    sections = [
        _failure(name, failures[name]) if name in failures else _section(done[name], plots)
        for name in names
        if name in failures or name in done
    ]
    missing = [name for name in names if name not in failures and name not in done]
    sections += [_missing(missing)] if missing else []
    with atomic_file(page) as temporary:
        temporary.write_text("\n".join([_HEAD, _answers(done), *sections]))


def _results(folder: Path) -> Results | None:
    """Read the results of an experiment; None if it has not been run."""
    return Results.read(folder) if (folder / f"{TABLE}.json").exists() else None


def _answers(results: Mapping[str, Results]) -> str:
    """Return the head of the page: one sentence per question, with a link to the script."""
    lines = []
    for key, question in QUESTIONS.items():
        for name, one in results.items():
            if key in one.answers:
                lines.append(f"- **{question}** {one.answers[key]} ([{name}]({_script(name)}))")
    return "\n".join([*lines, ""]) if lines else ""


def _section(results: Results, plots: Path) -> str:
    """Return the section of one experiment: question, command, table, plot and sentences."""
    parts = [
        f"## {results.title}\n",
        f"{results.question}\n",
        f"{results.method} [Script]({_script(results.name)}):\n",
        f"```sh\n{_command(results.name)}\n```\n",
        _table(results),
    ]
    if (plots / f"{results.name}.png").exists():
        parts.append(f"![{results.title}]({plots.name}/{results.name}.png)\n")
    parts.append("".join(f"- {sentence}\n" for sentence in results.sentences))
    return "\n".join(parts)


def _missing(names: Sequence[str]) -> str:
    """Return the section that names the experiments without results."""
    scripts = ", ".join(f"[{name}]({_script(name)})" for name in names)
    return f"## Without results\n\nThese experiments have not been run for this page: {scripts}.\n"


def _failure(name: str, error: str) -> str:
    return f"## {name}\n\nThis experiment failed: {error} [Script]({_script(name)}): `{_command(name)}`\n"


def _table(results: Results) -> str:
    """Return the table in Markdown, without columns that are empty in all rows."""
    cells = {column: [column.text(row) for row in results.rows] for column in results.columns}
    shown = [column for column, texts in cells.items() if any(texts)]
    headings = [f"{c.heading} ({c.unit})" if c.unit else c.heading for c in shown]
    lines = [headings, ["---"] * len(shown), *zip(*(cells[column] for column in shown), strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _script(name: str) -> str:
    return f"../experiments/suite/{name}.py"


def _command(name: str) -> str:
    return f"python -m experiments.suite.{name} --out runs/experiments/{name}"
