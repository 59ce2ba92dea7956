"""Judge the toy and SmolLM2 in every number format, by the whole of the course's problems: some minutes for each.

`python tools/quantized_scores.py [SCHEME ...]` judges these schemes (all of `quant.model.SCHEMES`, and then the caches,
if none is named; `caches` for the caches alone) and writes the scores into `quantized.json` beside the toy's
checkpoint; the others stay as they stand there.
Formats without a kernel here are judged as the floats that their codes stand for: the same numbers, only faster.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import islice
from pydoc_data.topics import topics
from statistics import fmean, stdev

import torch

from llmflation import facts
from llmflation.claims import machine
from llmflation.corpus import BOS, DOMAINS, encode, look_up_at, problems, training_documents
from llmflation.evaluate import (
    DISTANCES,
    PROBLEMS,
    ROOM,
    TEXT_TOKENS,
    WINDOW,
    MakeCache,
    Score,
    Z,
    document_bits,
    documents_of,
    knows,
    paired_accuracy,
    paired_bits,
    paired_perplexity,
    right,
    text_nats,
)
from llmflation.pretrained import CHECKPOINTS, Pretrained, load_real_model, load_toy
from llmflation.quant.kernels import Reference
from llmflation.quant.model import SCHEMES, bits_per_weight, dequantized, model_bytes, quantize_model, quantized_layers
from llmflation.quantized_cache import QuantizedKVCache

PLACE = CHECKPOINTS / "dense" / "quantized.json"
SPLITS = ("standard", "hard")
CACHE_PROBLEMS = 100  # look-ups at each distance
CACHES: dict[str, MakeCache | None] = {
    "fp32": None,
    "8 bits by 32": partial(QuantizedKVCache, bits=8),
    "4 bits by 16": partial(QuantizedKVCache, bits=4, group_size=16),
    "4 bits by 32": partial(QuantizedKVCache, bits=4),
    "4 bits by head": partial(QuantizedKVCache, bits=4, group_size=None)}


def toy_found(model) -> dict:
    """What a toy gets right of each split, problem by problem, and what each document costs it."""
    asked = {split: [p for name in DOMAINS for p in problems(name, split, PROBLEMS, 0, ROOM)] for split in SPLITS}
    return {split: right(model, some) for split, some in asked.items()} | {
        "bits": document_bits(model, documents_of("standard", 0))}


def toy_scores(found: dict, base: dict) -> dict:
    """Those as shares with intervals, and beside the toy as it was trained."""
    scores = {}
    for split in SPLITS:
        parts = {name: found[split][i * PROBLEMS:(i + 1) * PROBLEMS] for i, name in enumerate(DOMAINS)}
        by = {name: Score(sum(some), len(some)) for name, some in parts.items()}
        scores[split] = {"mean": fmean(s.accuracy for s in by.values()),
                         "domains": {name: {"right": s.right, "n": s.n} for name, s in by.items()},
                         "change": change(paired_accuracy(split, base[split], found[split]))}
    documents = documents_of("standard", 0)
    scores["bits_per_byte"] = sum(found["bits"]) / sum(len(d.text) for d in documents)
    return scores | {"bits_change": change(paired_bits(documents, base["bits"], found["bits"]))}


def real_scores(real: Pretrained, base: tuple) -> dict:
    """Perplexity and facts of SmolLM2, and beside SmolLM2 as it came."""
    nats, known = text_nats(real), knows(real, facts.read("cloze"))
    return {"perplexity": math.exp(float(nats.mean())), "cloze": {"right": sum(known), "n": len(known)},
            "perplexity_change": change(paired_perplexity(base[0], nats)),
            "cloze_change": change(paired_accuracy("cloze", base[1], known))}


def head_kept(real: Pretrained, base: torch.Tensor) -> dict:
    """Perplexity where the embedding and the head that is tied to it stay in 32 bits."""
    nats = text_nats(real)
    return {"perplexity": math.exp(float(nats.mean())), "perplexity_change": change(paired_perplexity(base, nats))}


def cache_scores(make: MakeCache | None, toy, real: Pretrained, base: dict) -> tuple[dict, dict]:
    """With a cache that rounds: the toy's look-ups by distance, and SmolLM2's text, all and by quarters of a window;
    and what the next cache is compared with (`base` is that of whole keys and values, or empty)."""
    answers = right(toy, [p for at in DISTANCES for p in look_up_at(at, CACHE_PROBLEMS, 0, ROOM)], make)
    found = {at: answers[i * CACHE_PROBLEMS:(i + 1) * CACHE_PROBLEMS] for i, at in enumerate(DISTANCES)}
    lists = found["lists"] = [[found[at][i] for at in DISTANCES] for i in range(CACHE_PROBLEMS)]
    nats = text_nats(real, TEXT_TOKENS, make)
    found |= {f"q{i}": part for i, part in enumerate(nats.view(-1, 4, WINDOW // 4).unbind(1))} | {"text": nats}
    base = base or found
    return {
        "bits_per_value": 32 if make is None else make(toy.cfg, 1, 1).bits_per_value,
        "distances": {at: {"right": sum(found[at]), "n": CACHE_PROBLEMS,
                           "change": change(paired_accuracy(f"{at}", base[at], found[at]))} for at in DISTANCES},
        "lists": ["".join("01"[answer] for answer in some) for some in lists],  # right or not, from near to far
        "look_ups": by_list(base["lists"], lists),
        "perplexity": math.exp(float(nats.mean())),
        "perplexity_change": change(paired_perplexity(base["text"], nats)),
        "quarters": [change(paired_perplexity(base[f"q{i}"].flatten(), found[f"q{i}"].flatten())) for i in range(4)],
    }, base


def by_list(before: list[list[bool]], after: list[list[bool]]) -> dict:
    """By how much the share of right answers changes, each list one draw: its questions have much in common."""
    each = [fmean(b) - fmean(a) for a, b in zip(before, after, strict=True)]
    half = Z * stdev(each) / math.sqrt(len(each))
    return {"difference": fmean(each), "low": fmean(each) - half, "high": fmean(each) + half}


def toy_calibration() -> list[list[int]]:
    """The beginnings of 64 documents that the toy was trained on."""
    documents = islice(training_documents(0), 64)
    return [[BOS, *encode(document.text)][:WINDOW] for document in documents]


def real_calibration(real: Pretrained) -> list[list[int]]:
    """Eight pieces of Python's manual, between those that perplexity is taken from."""
    ids = real.tokenizer.encode("\n\n".join(text for _, text in sorted(topics.items())))
    starts = (int((i + 0.5) * len(ids) / 8) for i in range(8))
    return [ids[start:start + WINDOW] for start in starts]


def change(criterion) -> dict:
    return {"difference": criterion.difference, "low": criterion.low, "high": criterion.high}


def judged_form(model):
    """The model itself where kernels multiply it, else the floats that it stands for."""
    slow = any(type(layer.form) is Reference and layer.activation_bits is None
               for layer in quantized_layers(model).values())
    return dequantized(model) if slow else model


def held(model) -> dict:
    return {"bits_per_weight": bits_per_weight(model), "nbytes": model_bytes(model)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schemes", nargs="*", choices=[[], *SCHEMES, "caches"], metavar="SCHEME")
    names = parser.parse_args().schemes or [*SCHEMES, "caches"]
    checkpoint = PLACE.with_name("SHA256SUMS").read_text("utf-8").split()[0]
    stored = json.loads(PLACE.read_text("utf-8")) if PLACE.is_file() else {}
    if stored.get("checkpoint") != checkpoint:  # another toy's: all are judged anew
        stored = {"toy": {}, "SmolLM2": {}, "checkpoint": checkpoint}
    toy, real = load_toy(), load_real_model(torch.float32)
    if schemes := [name for name in names if name in SCHEMES]:
        judge_schemes(schemes, toy, real, stored)
    if "caches" in names:
        judge_caches(toy, real, stored)
    return 0


def judge_schemes(names: list[str], toy, real: Pretrained, stored: dict) -> None:
    """Each of them on both models; what is done is stored at once."""
    calibration, words = toy_calibration(), real_calibration(real)
    base, real_base = toy_found(toy), (text_nats(real), knows(real, facts.read("cloze")))
    stored["toy"]["fp32"] = held(toy) | toy_scores(base, base)
    stored["SmolLM2"]["fp32"] = held(real.model) | real_scores(real, real_base) | {
        "head_kept": head_kept(real, real_base[0])}
    for name in names:
        start = time.perf_counter()
        small = quantize_model(toy, name, calibration=calibration)
        took_s = time.perf_counter() - start
        stored["toy"][name] = held(small) | {"quantizing_s": took_s} | toy_scores(toy_found(judged_form(small)), base)
        print(f"toy, {name}: {stored['toy'][name]['standard']['mean']:.1%}, {time.perf_counter() - start:.0f} s",
              flush=True)
        small = quantize_model(real.model, name, calibration=words)
        stored["SmolLM2"][name] = held(small) | real_scores(replace(real, model=judged_form(small)), real_base)
        small = quantize_model(real.model, name, calibration=words, skip="head")
        stored["SmolLM2"][name]["head_kept"] = head_kept(replace(real, model=judged_form(small)), real_base[0])
        print(f"SmolLM2, {name}: {stored['SmolLM2'][name]['perplexity']:.2f}, {time.perf_counter() - start:.0f} s",
              flush=True)
        store(stored)


def judge_caches(toy, real: Pretrained, stored: dict) -> None:
    """All of CACHES, on both models with their weights as they are."""
    base, stored["caches"] = {}, {}
    for name, make in CACHES.items():
        start = time.perf_counter()
        stored["caches"][name], base = cache_scores(make, toy, real, base)
        print(f"cache, {name}: {stored['caches'][name]['perplexity']:.2f}, {time.perf_counter() - start:.0f} s",
              flush=True)
    store(stored)


def store(stored: dict) -> None:
    stored |= {"machine": machine(), "date": date.today().isoformat(), "torch": torch.__version__}
    PLACE.write_text(json.dumps(stored, indent=1) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())
