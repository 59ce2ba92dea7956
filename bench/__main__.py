"""`python -m bench NAME [--quick]`: a table, then the same rows as one last line of JSON."""

import argparse
import datetime as dt
import sys

import torch

from llmflation import claims
from llmflation.errors import LLMflationError
from llmflation.linear import SEVERAL, linear_path

from . import cost, kvcache, quant, roofline, toy
from .rows import Report

BENCHES = {"toy": toy.rows, "cost": cost.rows, "roofline": roofline.rows,
           "kvcache": kvcache.rows, "quant": quant.rows}  # each gives its rows and notes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=BENCHES)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: done within five minutes")
    chosen, rest = parser.parse_known_args(arguments)
    try:
        rows, notes = BENCHES[chosen.name](chosen.quick, rest)
    except LLMflationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(Report(chosen.name, machine(), rows, notes))
    return 0


def machine() -> dict:
    """What the ratios may depend on: the machine, PyTorch, its threads, and the paths that it found fastest."""
    return {"name": claims.machine(), "date": dt.date.today().isoformat(), "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "linear_path": {f"{dtype}, {n} at once": linear_path(dtype, n)
                            for dtype in (torch.float32, torch.bfloat16) for n in (1, SEVERAL)}}


if __name__ == "__main__":
    sys.exit(main())
