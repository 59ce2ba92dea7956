"""Train the toy: `python -m llmflation.train FOLDER`. Interrupt it at any moment; the same command goes on.

What makes a small model learn fast here, in the order of what it was worth: every question repeats the form of its
fact; Muon for the matrices (in first trials about three times fewer tokens than AdamW alone); many questions in one
context; a difficulty that rises; the answers weighed above the rest; and a long cool-down of the step size.

Every batch follows from the seed and the step's number alone, and so a run that was interrupted needs nothing but its
weights and the optimizers' memory to go on to the same bits.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import load_checkpoint, save_checkpoint, write_text
from .config import ModelConfig
from .corpus import BOS, CONTEXT, DOMAINS, PAD, VOCAB_SIZE, encode, training_document
from .errors import BadInputError, DataError, LLMflationError, bad_input
from .evaluate import PROBLEMS, scores_of
from .model import Transformer
from .muon import Muon, fast_format

TOY = ModelConfig(4, 512, 8, 2, 1536, VOCAB_SIZE, context=CONTEXT, tied_embeddings=True, name="toy")
QUARTER = ModelConfig(4, 256, 4, 1, 768, VOCAB_SIZE, context=CONTEXT, tied_embeddings=True, name="quarter")
STATE, CURVE, DONE = "state.safetensors", "loss_curve.csv", "training.json"
_COLUMNS = "step,tokens,loss,answer_bits_per_byte,rest_bits_per_byte,minutes"


@dataclass(frozen=True)
class Recipe:
    """Everything that a run's result follows from, on one machine."""

    cfg: ModelConfig = TOY
    steps: int = 2500
    seed: int = 1
    documents: int = 16  # of each step; of each eight one is of each domain
    document_bytes: int = 256  # look-up documents grow up to the context
    matrix_step: float = 0.02  # Muon's learning rate
    other_step: float = 3e-3  # AdamW's, for the embedding and the norms
    rest_weight: float = 0.2  # of a document's other bytes, where its answers weigh 1
    rising: float = 0.4  # share of the run over which the difficulty rises
    cooling: float = 0.5  # share of the run, at its end, over which the step size falls to 0

    def __post_init__(self):
        for name, least in (("steps", 1), ("documents", 1), ("document_bytes", 256)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise bad_input(name, value, f"a whole number of {least} or more")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise bad_input("seed", self.seed, "a whole number")
        for name in ("matrix_step", "other_step", "rest_weight", "rising", "cooling"):
            if not 0 < getattr(self, name) <= 1:
                raise bad_input(name, getattr(self, name), "a number above 0, up to 1")

    def step_scale(self, step: int) -> float:
        """The learning rates' factor: up over the first 2% of the steps, down to 0 over the last of them."""
        return min(1.0, (step + 1) / (0.02 * self.steps), (self.steps - step) / (self.cooling * self.steps))

    def difficulty(self, step: int) -> float:
        """From 0, the easiest sizes, to 1, all up to the standard ones."""
        return min(1.0, step / (self.rising * self.steps))

    def look_up_bytes(self, number: int) -> int:
        """Room of the look-up document `number`: every other one is longer, by up to as much as the difficulty."""
        longest = int(math.log2(self.cfg.context / self.document_bytes))
        doublings = (0, longest, 0, 1, 0, longest - 1, 0, 1)[number // 8 % 8]
        return self.document_bytes * 2 ** min(doublings, round(longest * self.difficulty(number // self.documents)))


@dataclass(frozen=True)
class Batch:
    """Documents of one length: inputs and targets (B, T); what each target counts; which lie in an answer."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    in_answer: Tensor


def batches(recipe: Recipe, step: int) -> list[Batch]:
    """The documents of one step, those of one length together; their weights sum to 1 + rest_weight."""
    by_room: dict[int, list] = {}
    for number in range(step * recipe.documents, (step + 1) * recipe.documents):
        room, difficulty = recipe.document_bytes, recipe.difficulty(step)
        document = training_document(recipe.seed, number, difficulty, room)
        if document.domain == "look-up" and recipe.look_up_bytes(number) > room:
            room = recipe.look_up_bytes(number)
            document = training_document(recipe.seed, number, difficulty, room)
        by_room.setdefault(room, []).append(document)
    return [_batch(documents, recipe) for documents in by_room.values()]


def _batch(documents: list, recipe: Recipe) -> Batch:
    texts = [[BOS, *encode(document.text)] for document in documents]
    tokens = torch.full((len(texts), max(map(len, texts))), PAD)
    in_answer = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (text, document) in enumerate(zip(texts, documents, strict=True)):
        tokens[row, : len(text)] = torch.tensor(text)
        for start, end in document.answer_spans:
            in_answer[row, start + 1 : end + 1] = True  # BOS stands before the text
    targets, in_answer = tokens[:, 1:], in_answer[:, 1:]
    rest = ~in_answer & (targets != PAD)
    weights = sum(share * part / part.sum(1, keepdim=True).clamp(min=1)
                  for share, part in ((1.0, in_answer), (recipe.rest_weight, rest)))
    return Batch(tokens[:, :-1], targets, weights / recipe.documents, in_answer)


class Run:
    """A model in training: its weights, the optimizers' memory, and how far it has come."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.step, self.tokens, self.seconds = recipe, 0, 0, 0.0
        self.format = fast_format()  # of the products; the weights are float32
        self.model = Transformer(recipe.cfg, seed=recipe.seed)
        self.weights = dict(self.model.named_parameters())
        matrices = [p for name, p in self.weights.items() if p.ndim == 2 and name.startswith("blocks.")]
        others = [p for name, p in self.weights.items() if p.ndim != 2 or not name.startswith("blocks.")]
        self.optimizers = (Muon(matrices, recipe.matrix_step),
                           torch.optim.AdamW(others, lr=recipe.other_step, betas=(0.9, 0.98), weight_decay=0.0))
        self.curve: list[str] = []

    def advance(self) -> dict[str, float]:
        """One step: read its documents, move the weights; its loss, and bits per byte in answers and outside."""
        sums = {"loss": 0.0, "answer": 0.0, "answers": 0, "rest": 0.0, "rests": 0}
        for batch in batches(self.recipe, self.step):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.format == torch.bfloat16):
                logits = self.model(batch.inputs)
            nats = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
            nats = nats.view_as(batch.weights)
            loss = (nats * batch.weights).sum()
            loss.backward()
            for key, part in (("answer", batch.in_answer), ("rest", ~batch.in_answer & (batch.targets != PAD))):
                sums[key] += float(nats.detach()[part].sum())
                sums[key + "s"] += int(part.sum())
            sums["loss"] += float(loss.detach())
        if not math.isfinite(sums["loss"]):
            raise BadInputError(f"the loss at step {self.step} is {sums['loss']}; start again with smaller steps "
                                f"(matrix_step is {self.recipe.matrix_step}).")
        for optimizer, rate in zip(self.optimizers, (self.recipe.matrix_step, self.recipe.other_step), strict=True):
            optimizer.param_groups[0]["lr"] = rate * self.recipe.step_scale(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += sums["answers"] + sums["rests"]
        return {"loss": sums["loss"], "answer": sums["answer"] / math.log(2) / max(1, sums["answers"]),
                "rest": sums["rest"] / math.log(2) / max(1, sums["rests"])}

    def save(self, folder: Path) -> None:
        """Write everything into one file, in place of the last one, whole or not at all."""
        tensors = {f"weights/{name}": p.detach() for name, p in self.weights.items()}
        for name, p in self.weights.items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(p, {}).items():
                    tensors[f"{key}/{name}"] = value
        header = {"recipe": identity(self.recipe), "step": str(self.step), "tokens": str(self.tokens),
                  "seconds": repr(self.seconds), "curve": "\n".join(self.curve)}
        fresh = folder / f"{STATE}.{os.getpid()}.tmp"
        try:
            save_file(tensors, fresh, metadata=header)
            os.replace(fresh, folder / STATE)
        except (OSError, SafetensorError) as error:
            raise DataError(f"could not be written ({error}); the last one, if any, is as it was. Make room and run "
                            "the same command again.", file=STATE) from None
        finally:
            fresh.unlink(missing_ok=True)

    @classmethod
    def resume(cls, folder: Path, recipe: Recipe) -> "Run":
        """The run as `save` left it in `folder`, or a new one where there is none. DataError for another recipe's."""
        run = cls(recipe)
        if not (folder / STATE).exists():
            return run
        try:
            with safe_open(folder / STATE, framework="pt") as file:
                header = file.metadata()
                if header["recipe"] != identity(recipe):
                    raise DataError(f"belongs to another run: {header['recipe']}; give a new folder, or that recipe.",
                                    file=STATE)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, KeyError) as error:
            raise DataError(f"cannot be read ({error}); delete it to start again.", file=STATE) from None
        run._restore(tensors)
        run.step, run.tokens, run.seconds = int(header["step"]), int(header["tokens"]), float(header["seconds"])
        run.curve = header["curve"].splitlines()
        return run

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for name, p in self.weights.items():
            p.data.copy_(tensors.pop(f"weights/{name}"))
        owner = {id(p): optimizer for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"]}
        for path, value in tensors.items():
            key, _, name = path.partition("/")
            p = self.weights[name]
            owner[id(p)].state[p][key] = value


def identity(recipe: Recipe) -> str:
    """The recipe as one line of JSON: two runs are the same run if theirs are equal."""
    return json.dumps(asdict(replace(recipe, cfg=replace(recipe.cfg, published=None))), sort_keys=True)


def train(recipe: Recipe, folder, *, save_every: int = 100, stop_at: int | None = None) -> Iterator[dict[str, float]]:
    """Run the recipe in `folder`, from where it was left; yields each step's numbers, and `seconds` and `step`.

    When the last step is done the checkpoint (bfloat16), the loss curve, and the scores with recipe and machine stand
    in `folder`. An interruption loses at most `save_every` steps.
    """
    if stop_at is not None and (isinstance(stop_at, bool) or not isinstance(stop_at, int) or stop_at < 1):
        raise bad_input("stop_at", stop_at, "a whole number of 1 or more")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run.resume(folder, recipe)
    if run.step == 0:
        (folder / DONE).unlink(missing_ok=True)  # of a run that was deleted
    end = min(recipe.steps, stop_at or recipe.steps)
    while run.step < end:
        began = time.perf_counter()
        numbers = run.advance()
        run.seconds += time.perf_counter() - began
        run.curve.append(f"{run.step},{run.tokens},{numbers['loss']:.5f},{numbers['answer']:.5f},"
                         f"{numbers['rest']:.5f},{run.seconds / 60:.3f}")
        if run.step % save_every == 0 or run.step == end:
            run.save(folder)
        yield {**numbers, "step": run.step, "tokens": run.tokens, "seconds": run.seconds}
    if run.step == recipe.steps and not (folder / DONE).exists():
        _finish(run, folder)


def _finish(run: Run, folder: Path) -> None:
    """Leave the checkpoint, and beside it the curve, and the recipe with what came of it."""
    cfg = run.recipe.cfg
    save_checkpoint(folder, cfg, run.model.state_dict(), torch.bfloat16)
    write_text(folder / CURVE, "\n".join([_COLUMNS, *run.curve]) + "\n")
    trained = Transformer.of(*load_checkpoint(folder))
    facts = {"recipe": json.loads(identity(run.recipe)), "tokens": run.tokens, "minutes": round(run.seconds / 60, 1),
             "torch": torch.__version__, "threads": torch.get_num_threads(), "machine": _machine(),
             "products_in": str(run.format).removeprefix("torch."),
             "scores": judged(trained.float()) if cfg.context >= CONTEXT else None}
    write_text(folder / DONE, json.dumps(facts, indent=1) + "\n")


def judged(model: Transformer) -> dict:
    """A toy's size, and its scores on both splits (see `evaluate.scores_of`)."""
    return {"params": sum(p.numel() for p in model.parameters()), "problems": PROBLEMS * len(DOMAINS),
            **{split: scores_of(model, split) for split in ("standard", "hard")}}


def _machine() -> str:
    """System and processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return " ".join([platform.system(), platform.machine(), *names[:1]])


def _show(now: dict[str, float], steps: int) -> None:
    done, per_step = now["step"] / steps, now["seconds"] / now["step"]
    print(f"\r[{'#' * int(30 * done):<30}] {now['step']}/{steps}  loss {now['loss']:.3f}  bits/byte: answers "
          f"{now['answer']:.3f}, rest {now['rest']:.3f}  {now['tokens'] / now['seconds']:,.0f} tokens/s  "
          f"{per_step * (steps - now['step']) / 60:.0f} min left ", end="", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmflation.train", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--size", choices=("toy", "quarter"), default="toy")
    parser.add_argument("--stop-at", type=int, help="end after this step, as an interruption would")
    parser.add_argument("--matrix-step", type=float, default=Recipe.matrix_step)
    chosen = parser.parse_args(arguments)
    cfg = TOY if chosen.size == "toy" else QUARTER
    try:
        recipe = Recipe(cfg, chosen.steps, chosen.seed, matrix_step=chosen.matrix_step)
        for now in train(recipe, chosen.folder, stop_at=chosen.stop_at):
            _show(now, recipe.steps)
    except (LLMflationError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    print(file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
