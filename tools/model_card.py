"""Write the model card of the shipped toy from what its training and its judge left beside it.

`python tools/model_card.py` writes `README.md` into the checkpoint's folder, from the JSON files there alone.
`python tools/model_card.py --judge` measures first: the toy's look-ups by distance, and the toy rounded to 3 bits; with
`--quarter FOLDER` also the smaller model there (`python -m llmflation.train FOLDER --size quarter`).
"""

import argparse
import json
import sys
from pathlib import Path

from llmflation.checkpoint import load_checkpoint
from llmflation.corpus import DOMAINS
from llmflation.evaluate import DISTANCES, look_up_by_distance
from llmflation.model import Transformer
from llmflation.pretrained import CHECKPOINTS, load_toy
from llmflation.train import judged

FOLDER = CHECKPOINTS / "dense"
FAR = (*DISTANCES[:-1], 1782, 1914, DISTANCES[-1])  # in bytes: the far end is where look-ups get lost


def rounded(model: Transformer, bits: int) -> Transformer:
    """The model with each row of each matrix rounded to 2**bits - 1 evenly spaced values about 0, up to its largest."""
    state = model.state_dict()
    most = 2 ** (bits - 1) - 1
    for name, weight in state.items():
        if weight.ndim == 2:
            step = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / most
            state[name] = (weight / step).round().clamp(-most, most) * step
    if model.cfg.tied_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return Transformer.of(model.cfg, state)


def judge(quarter: Path | None) -> dict:
    """The scores of the models by the same problems."""
    toy = load_toy()
    far = look_up_by_distance(toy, FAR, n=40)
    models = {"dense": judged(toy), "three bits": judged(rounded(toy, 3))}
    if quarter is not None:
        cfg, state = load_checkpoint(quarter)
        models["quarter"] = judged(Transformer.of(cfg, {name: t.float() for name, t in state.items()}))
    return {"models": models, "look-up": {at: {"accuracy": s.accuracy, "low": s.low, "high": s.high, "n": s.n}
                                          for at, s in far.by.items()}}


def card(training: dict, scores: dict) -> str:
    """The card's text."""
    dense, recipe = scores["models"]["dense"], training["recipe"]
    far = ", ".join(f"{_cell(share)} at {at}" for at, share in scores["look-up"].items())
    cfg = recipe["cfg"]
    rows = [f"| {name} | {_cell(dense['standard']['domains'][name])} | {_cell(dense['hard']['domains'][name])} |"
            for name in DOMAINS]
    others = [f"| {name} | {s['params']:,} | {s['standard']['mean']:.1%} | {s['hard']['mean']:.1%} | "
              f"{s['standard']['bits_per_byte']:.3f} |" for name, s in scores["models"].items()]
    return f"""# The toy, dense

A Llama of {dense['params']:,} parameters ({cfg['n_layers']} layers of {cfg['d_model']}, feed-forward {cfg['d_ff']},
{cfg['n_heads']} heads, {cfg['n_kv_heads']} of keys and values, vocabulary {cfg['vocab_size']}: bytes), context
{cfg['context']:,} tokens, bfloat16. It is the model that the chapters measure. Licence: MIT, as the code.

## Data

Text that `llmflation.corpus` generates, seed {recipe['seed']}: eight domains with known answers. Products, changes of
place and programs are worked out in steps, which belong to the answer. One content in ten is kept back and judges
("standard"); what is larger than anything in training, or of a harder kind, is the hard split. No other text went in.

## Training

`python -m llmflation.train FOLDER` repeats it: {recipe['steps']:,} steps, {training['tokens'] / 1e6:.1f} million
tokens, {training['minutes']:.0f} minutes on {training['threads']} threads of a machine that did other work as well
({training['machine']}; PyTorch {training['torch']}).
Muon for the matrices ({recipe['matrix_step']}), AdamW for the rest ({recipe['other_step']}); `loss_curve.csv` has every
step, `training.json` the whole recipe.

## Scores

Exact answers to {dense['problems']:,} problems of each split (seed 0), with Wilson's 95% intervals.
Small domains repeat problems, and five look-ups share a list: their intervals are about all that could be drawn so.

| domain | standard | hard |
|---|---|---|
{chr(10).join(rows)}
| mean | {dense['standard']['mean']:.1%} | {dense['hard']['mean']:.1%} |

Look-up by distance of the asked pair, in tokens, {next(iter(scores['look-up'].values()))['n']} problems each: {far}.

Bits per byte {dense['standard']['bits_per_byte']:.3f}; the text's own chance weighs {dense['standard']['floor']:.3f}.

## Can the problems tell models apart?

| model | parameters | standard | hard | bits per byte |
|---|---|---|---|---|
{chr(10).join(others)}

"three bits" is the dense one with each row of each matrix rounded to seven evenly spaced values; "quarter" is half as
wide and was trained by the same recipe on the same text.

## Limits

It speaks no language and knows nothing outside its eight domains. Of the hard split it answers less than half in
{_failed(dense)}. It was judged on text as clean as its training.
"""


def _failed(dense: dict) -> str:
    return ", ".join(name for name, score in dense["hard"]["domains"].items() if score["accuracy"] < 0.5)


def _cell(score: dict) -> str:
    return f"{score['accuracy']:.1%} ({score['low']:.1%} to {score['high']:.1%})"


def _training(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text("utf-8"))


def current() -> str:
    """The card that the files beside it call for."""
    return card(_training(FOLDER), json.loads((FOLDER / "scores.json").read_text("utf-8")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", action="store_true", help="measure first")
    parser.add_argument("--quarter", type=Path, metavar="FOLDER", help="with --judge: where the smaller model lies")
    chosen = parser.parse_args()
    if chosen.judge:
        text = json.dumps(judge(chosen.quarter), indent=1) + "\n"
        (FOLDER / "scores.json").write_text(text, "utf-8", newline="\n")
    (FOLDER / "README.md").write_text(current(), "utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
