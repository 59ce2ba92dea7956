"""`python -m bench NAME [--quick]`: a table, then the same rows as one last line of JSON."""

import argparse
import datetime as dt
import sys

import torch

from llmflation import claims
from llmflation.linear import linear_path

from . import toy
from .rows import Report

BENCHES = {"toy": toy.rows}  # each gives its rows and notes; True: within five minutes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=BENCHES)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: done within five minutes")
    chosen = parser.parse_args(arguments)
    rows, notes = BENCHES[chosen.name](chosen.quick)
    print(Report(chosen.name, machine(), rows, notes))
    return 0


def machine() -> dict:
    """What the ratios may depend on: the machine, PyTorch, its threads, and the paths that it found fastest."""
    return {"name": claims.machine(), "date": dt.date.today().isoformat(), "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "linear_path": {str(dtype): linear_path(dtype) for dtype in (torch.float32, torch.bfloat16)}}


if __name__ == "__main__":
    sys.exit(main())
