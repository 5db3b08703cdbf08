"""Tables and files of results."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import processor

from .jobs import Job, Lines, commit


@dataclass(frozen=True)
class Row:
    config: str
    label: str
    runs: dict[int, dict[str, Any]]  # seed -> summary

    def values(self, field: str) -> list[float]:
        """Of the runs that have it: one that diverged has no loss."""
        values = (run.get(field) for run in self.runs.values())
        return [value for value in values if value is not None]

    def mean(self, field: str) -> float | None:
        values = self.values(field)
        return statistics.fmean(values) if len(values) == len(self.runs) else None


def rows(finished: Mapping[Job, Lines], experiment: str, labels: Mapping[str, str]) -> list[Row]:
    """The rows of one experiment in the labels' order, those that have runs."""
    found: list[Row] = []
    for config, label in labels.items():
        runs = {
            job.seed: next(line for line in lines if line["kind"] == "summary")
            for job, lines in finished.items()
            if (job.experiment, job.config) == (experiment, config)
        }
        if runs:
            found.append(Row(config, label, runs))
    return found


@dataclass(frozen=True)
class Column:
    """``field`` of the summaries: mean over seeds, and their range if ``spread``."""

    title: str
    field: str
    form: str = ".4f"
    spread: bool = False
    against_first: bool = False  # also in percent of the first row's mean
    factor: float = 1.0


def table(title: str, shown: Sequence[Row], columns: Sequence[Column]) -> str:
    header = ["", "runs"]
    for column in columns:
        header += [column.title]
        header += ["seeds"] if column.spread else []
        header += ["against the first"] if column.against_first else []
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [
        [
            row.label,
            str(len(row.runs)),
            *(cell for column in columns for cell in _cells(row, shown[0], column)),
        ]
        for row in shown
    ]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: Row, first: Row, column: Column) -> list[str]:
    mean, base = row.mean(column.field), first.mean(column.field)
    values = [column.factor * value for value in row.values(column.field)]
    missing = "diverged" if any("diverged_at" in run for run in row.runs.values()) else "-"
    cells = [missing if mean is None else f"{column.factor * mean:{column.form}}"]
    if column.spread:
        # Values that would be read as one are shown as one.
        shown = [f"{value:{column.form}}" for value in (min(values), max(values))] if values else []
        cells += [" to ".join(dict.fromkeys(shown)) or "-"]
    if column.against_first:
        comparable = mean is not None and base and row is not first
        cells += [f"{100 * (mean / base - 1):+.1f} %" if comparable else ""]
    return cells


def write(
    args: argparse.Namespace,
    about: str,
    parts: Sequence[str],
    finished: Mapping[Job, Lines],
    picture: Path | None = None,
) -> None:
    """Write NAME.md and NAME.json; print the former."""
    args.out.mkdir(parents=True, exist_ok=True)
    facts = environment(finished)
    shown = [f"![{picture.stem}]({picture.name})"] if picture else []
    closing = (
        f"{facts['date']}, commit {', '.join(facts['commits'])}; {facts['machine']}, "
        f"{facts['cores']} cores, one thread a run; Python {facts['python']}, "
        f"torch {facts['torch']}.\n\n    {facts['command']}"
    )
    text = "\n\n".join([about.strip(), *parts, *shown, closing]) + "\n"
    (args.out / f"{args.name}.md").write_text(text)
    content = {"environment": facts, "runs": [_as_json(*item) for item in finished.items()]}
    (args.out / f"{args.name}.json").write_text(_compact(content))
    print(text)


def _as_json(job: Job, lines: Lines) -> dict[str, Any]:
    return {
        "experiment": job.experiment,
        "config": job.config,
        "seed": job.seed,
        "settings": job.settings,
        "lines": [line for line in lines if line["kind"] != "config"],
    }


def _compact(content: dict[str, Any]) -> str:
    """One run a line: short, and a diff shows which run changed."""
    runs = ",\n".join(json.dumps(_rounded(run)) for run in content["runs"])
    environment = json.dumps(content["environment"], indent=1)
    return f'{{"environment": {environment},\n"runs": [\n{runs}\n]}}\n'


def _rounded(value: Any) -> Any:
    """Six digits: more than a repetition on another machine would reproduce."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def environment(finished: Mapping[Job, Lines]) -> dict[str, Any]:
    """The runs' commits may differ from one another: runs that were there are kept."""
    seconds = [
        line["seconds"] for lines in finished.values() for line in lines if line["kind"] == "time"
    ]
    return {
        "command": shlex.join(["python", "benchmarks/methods.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commits": sorted({lines[0]["commit"] for lines in finished.values()} or {commit()}),
        "machine": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds_of_all_runs": round(sum(seconds)),
    }
