"""The paper's methods, measured: what reproduces on small models and what does not.

    python benchmarks/methods.py init      # generalized Gaussian initialization
    python benchmarks/methods.py act       # activation-constrained training
    python benchmarks/methods.py gct       # gradient-constrained training
    python benchmarks/methods.py coders    # exp-Golomb against the entropy coder

Each writes docs/results/methods_*: a table, a picture and everything logged. Runs are processes of
one thread; one that is finished with the same settings is not repeated, so an interrupted call is
simply started again. The runs of the results in the tree took 50, 28 and 88 minutes of one thread
(``seconds_of_all_runs`` in the JSON files): on 2 cores the first three take about an hour and a
half in all, the last a minute. They need the extra experiments.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # scripts beside each other, not a package

from experiments import act, coders, gradient, init  # noqa: E402

EXPERIMENTS = {"init": init, "act": act, "gct": gradient, "coders": coders}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chosen = parser.add_subparsers(dest="experiment", required=True)
    for name, module in EXPERIMENTS.items():
        each = chosen.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(each)
    args = parser.parse_args(argv)
    EXPERIMENTS[args.experiment].run(args)


if __name__ == "__main__":
    main()
