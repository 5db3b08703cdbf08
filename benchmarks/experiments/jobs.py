"""Runs in worker processes, each with a log of its own; what is there is not repeated."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from runlog import RunLog, read_log, read_summary

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, eq=False)  # by identity, so that a job can be a key
class Job:
    """One run. ``settings`` holds everything but the code that decides its result."""

    experiment: str  # such as "init-gpt"
    config: str  # a row of the table, such as "he"
    seed: int
    settings: dict[str, Any]
    seconds: float = 0.0  # expected, on one core

    def log(self, folder: Path) -> Path:
        return folder / self.experiment / f"{self.config}-seed{self.seed}.jsonl"


Run = Callable[[Job, RunLog], None]  # writes the log's lines, the last of kind "summary"
Lines = list[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser, name: str, steps_help: str) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help=steps_help)
    parser.add_argument("--configs", nargs="+", help="only these rows")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: to try the harness")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes of one thread; 0: none but this"
    )
    parser.add_argument(
        "--finished", action="store_true", help="no new runs: results of those that are finished"
    )
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "methods")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--name", default=name, help="file name of the results")


def run_jobs(jobs: list[Job], run: Run, args: argparse.Namespace) -> dict[Job, Lines]:
    """Run what is not finished yet; the finished runs' lines, in the jobs' order.

    Raises:
        SystemExit: at the end, if a run failed; the others' logs are kept.
    """
    if args.configs:
        jobs = [job for job in jobs if job.config in args.configs]
    if not jobs:
        raise SystemExit(f"--configs: nothing is called {' or '.join(args.configs)}")
    todo = [job for job in jobs if not _is_finished(job, args.logs)]
    if args.finished:
        jobs, todo = [job for job in jobs if job not in todo], []
        if not jobs:
            raise SystemExit("--finished: no run is, with these settings")
    _announce(jobs, todo, args.workers)
    began, failures = time.monotonic(), []
    for done, (job, error) in enumerate(_results(todo, run, args), start=1):
        if error:
            failures.append(f"{job.experiment}, {job.config}, seed {job.seed}:\n{error}")
            print(failures[-1], flush=True)
        passed = time.monotonic() - began
        left = passed / done * (len(todo) - done)
        print(
            f"[{done}/{len(todo)}] {job.experiment}, {job.config}, seed {job.seed}; "
            f"{passed:.0f} s so far, about {left:.0f} s left",
            flush=True,
        )
    if failures:
        raise SystemExit(f"{len(failures)} runs failed; start the call again to repeat them")
    return {job: read_log(job.log(args.logs)) for job in jobs}


def _announce(jobs: list[Job], todo: list[Job], workers: int) -> None:
    minutes = sum(job.seconds for job in todo) / 60 / max(workers, 1)
    print(
        f"{len(jobs)} runs, {len(jobs) - len(todo)} finished before; "
        f"about {minutes:.0f} minutes with {max(workers, 1)} free core(s)",
        flush=True,
    )


def _is_finished(job: Job, folder: Path) -> bool:
    path = job.log(folder)
    # Other settings must not reuse an old result. Compared as JSON, which knows no tuples.
    settings = json.loads(json.dumps(job.settings))
    return read_summary(path) is not None and read_log(path)[0].get("settings") == settings


def _results(
    jobs: list[Job], run: Run, args: argparse.Namespace
) -> Iterable[tuple[Job, str | None]]:
    """Each job as it ends, and what went wrong."""
    if args.workers == 0:
        yield from ((job, _run_one(job, run, args.logs)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context, initializer=_one_thread) as pool:
        pending = {pool.submit(_run_one, job, run, args.logs): job for job in jobs}
        for future in as_completed(pending):
            yield pending[future], future.result()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run_one(job: Job, run: Run, folder: Path) -> str | None:
    began = time.perf_counter()
    try:
        log = RunLog(job.log(folder))
        log.write("config", commit=commit(), seed=job.seed, settings=job.settings)
        torch.manual_seed(job.seed)
        run(job, log)
    except Exception:  # the other runs are still worth having
        return traceback.format_exc()
    log.write("time", seconds=time.perf_counter() - began)
    return None


def commit() -> str:
    """Short hash of the tree that runs, with a + if files differ from it."""
    try:
        described = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return "unknown"
    return described.stdout.strip()
