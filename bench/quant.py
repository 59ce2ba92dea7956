"""`python -m bench quant`: what fewer bits gain in a step, a prompt and a batch, and beside others' kernels."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from llmflation.calibrate import BITS, step_of
from llmflation.corpus import encode, training_document
from llmflation.cost.counts import kv_bytes
from llmflation.linear import Linear, linear_path
from llmflation.model import Transformer
from llmflation.quant.gptq import quantize_layers
from llmflation.quant.integer import quantize
from llmflation.quant.linear import QuantizedLinear
from llmflation.quant.model import bits_per_weight, model_bytes, quantize_model, quantized_layers
from llmflation.timing import time_fn

from . import shapes
from .kvcache import READ_BYTES, by_ends, in_turns, reading_all
from .rows import Row, refuse, side_by_side

CONTEXT = 256
PROMPT = 512
BATCH = 32
STEPS = 8  # that follow each other in a call, as in writing: what fits into the processor's cache is then found there
REPORTED = 0.01  # the target of a row that has none: it is there to be read
# Each number's schemes, of which the faster is taken, with the activations' format that their kernels read; its target.
FORMATS = {"int8": ({"int8": torch.float32, "int8-weight-only": torch.bfloat16}, 1.7),
           "int4": ({"int4": torch.bfloat16}, 2.0)}
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
LAYER = (4096, 2048)  # of the crossover: rows and columns
COLD = 6  # such layers in turn, so that no weight is still in the processor's cache


def rows(quick: bool, arguments: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """All rows of this bench, and notes on how they were measured."""
    refuse(arguments)
    rounds = 6 if quick else 15
    with torch.random.fork_rng():
        found = []
        for shape in ("30m", "135m"):
            found += against_floats(shapes.model(shape), shape, rounds)
        small = shapes.model("30m")
        found += where_it_gains_little(small, rounds)
        found += crossover(rounds)
        found += beside_peers(small, rounds)
        found += gptq_time(shapes.model("toy"))
    found.append(f"Rows with the target {REPORTED:g} are reported; nothing is asked of them.")
    return [r for r in found if isinstance(r, Row)], [r for r in found if isinstance(r, str)]


def quantized(model: Transformer, number: str, call_of: Callable[[Transformer], Callable]) -> tuple[str, Transformer]:
    """The number's scheme in which the model's call is the faster, and the model in it."""
    made = {scheme: quantize_model(copy.deepcopy(model).to(dtype), scheme)
            for scheme, dtype in FORMATS[number][0].items()}
    calls = [call_of(fewer) for fewer in made.values()] if len(made) > 1 else []
    times = in_turns([*calls, *calls], 3)[len(calls):] if calls else [0.0]  # the first of each warms up
    fastest = min(zip(times, made, strict=True))[1]
    return fastest, made[fastest]


def writing(model: Transformer, batch: int = 1) -> Callable[[], None]:
    """STEPS decode steps behind CONTEXT tokens."""
    step = step_of(model, batch, CONTEXT)

    def steps() -> None:
        for _ in range(STEPS):
            step()
    return steps


# --- a step, one sequence ------------------------------------------------------------------------------------


def against_floats(model: Transformer, shape: str, rounds: int) -> list[Row | str]:
    """A decode step of one sequence with quantized weights, beside the fastest float32 one of this machine."""
    found, steps, schemes = [], {"fp32": (model, writing(model))}, {"fp32": "fp32"}
    for number, (_, target) in FORMATS.items():
        schemes[number], fewer = quantized(model, number, writing)
        steps[number] = fewer, writing(fewer)
        found.append(side_by_side(f"{number}-vs-fp32-{shape}", steps["fp32"][1], steps[number][1], target,
                                  rounds=rounds))
    buffer = torch.ones(READ_BYTES // 4)
    read_s, *times = in_turns([buffer.sum, *(step for _, step in steps.values())], 7)
    step_s = [time / STEPS for time in times]
    if shape == "135m":
        fewer, step = steps["int8"]
        found.append(side_by_side("roofline-share-int8-135m", buffer.sum, step, REPORTED, rounds=rounds, unit="share",
                                  factor=STEPS * through(fewer) / buffer.nbytes))
    found += [f"{schemes[number]} {shape}: {1 / s:.0f} tokens/s, {model_bytes(m) / 1e6:.0f} MB held, "
              f"{bits_per_weight(m):.2f} bits a weight, {through(m) / buffer.nbytes * read_s / s:.0%} of the memory's "
              f"speed{how(m)}."
              for (number, (m, _)), s in zip(steps.items(), step_s, strict=True)]
    return [*found, f"{shape}: one sequence behind {CONTEXT} tokens, {STEPS} steps in a row; the memory gives "
            f"{buffer.nbytes / read_s / 1e9:.0f} GB/s; what fits into the processor's cache comes faster, and its "
            "share can then be above 1."]


def through(model: Transformer) -> int:
    """Bytes that a step of one sequence goes through: the weights, and the cache."""
    return model_bytes(model) + kv_bytes(model.cfg, CONTEXT + 1, BITS[model.embedding.weight.dtype])


def how(model: Transformer) -> str:
    """By which path or kernels its products go."""
    forms = sorted({type(layer.form).__name__ for layer in quantized_layers(model).values()})
    return f", kernels {', '.join(forms)}" if forms else f", path {linear_path(torch.float32)!r}"


# --- where it gains little -----------------------------------------------------------------------------------


def where_it_gains_little(model: Transformer, rounds: int) -> list[Row | str]:
    """Reading a prompt, and a batch: there arithmetic takes the time, not memory."""
    ways = {"prefill": lambda m: reading_all(m, PROMPT), f"b{BATCH}": lambda m: writing(m, BATCH)}
    found, taken = [], []
    for what, call_of in ways.items():
        floats = call_of(model)
        for number in FORMATS:
            scheme, fewer = quantized(model, number, call_of)
            found.append(side_by_side(f"{number}-vs-fp32-{what}", floats, call_of(fewer), REPORTED, rounds=rounds))
            taken.append(f"{scheme} for {number} in {what}")
    return [*found, f"prefill: {PROMPT} tokens of one sequence, the 30m shape; b{BATCH}: a step of {BATCH} sequences "
            f"behind {CONTEXT} tokens each; the fastest: {', '.join(taken)}."]


def crossover(rounds: int) -> list[Row | str]:
    """The batch from which on int4 is slower than float32: predicted from two batches, and found by timing all.

    A product's time is that of its bytes, the same for each batch, and that of its arithmetic, which grows with it:
    a line through the times of one vector and of the largest batch.
    """
    wide = [Linear.of(torch.randn(LAYER) / LAYER[1] ** 0.5) for _ in range(COLD)]
    narrow = [QuantizedLinear.of(quantize(layer.weight, 4, 32, scale_dtype=torch.bfloat16)) for layer in wide]
    inputs = {n: torch.randn(n, LAYER[1]) for n in BATCHES}

    def times(n: int, repeat: int = 3) -> tuple[float, float]:
        half = inputs[n].to(torch.bfloat16)
        return tuple(in_turns([products(wide, inputs[n]), products(narrow, half)], repeat))

    times(1, 2)  # packs the weights
    taken = {n: times(n, max(3, rounds // 2)) for n in BATCHES}
    measured = list(zip(*taken.values(), strict=True))
    found = crossing(BATCHES, *measured)
    predicted = crossing(BATCHES, *(by_ends(BATCHES, kind) for kind in measured))
    table = "; ".join(f"{n}: {a / b:.2f}" for n, (a, b) in taken.items())
    note = (f"int4-crossover: a layer of {LAYER[0]} x {LAYER[1]}, float32's time over int4's at each batch: {table}. "
            f"int4 is slower from {spoken(found)} on; predicted: from {spoken(predicted)} on.")
    if found is None or predicted is None:
        return [note]
    share = min(found / predicted, predicted / found)
    return [Row("int4-crossover-predicted", share, share, share, REPORTED, "share"), note]


def products(layers: Sequence[nn.Module], x: torch.Tensor) -> Callable[[], None]:
    """The products of all layers, one after the other."""
    @torch.inference_mode()
    def run() -> None:
        for layer in layers:
            layer(x)
    return run


def crossing(batches: Sequence[int], floats: Sequence[float], fewer: Sequence[float]) -> float | None:
    """The batch from which on `fewer` takes longer than `floats`, between two batches on a line through the logarithms
    of their ratios; None if it never does up to the largest."""
    gains = [math.log(a / b) for a, b in zip(floats, fewer, strict=True)]
    for i in range(len(batches)):
        if gains[i] < 0:
            if i == 0:
                return float(batches[0])
            share = gains[i - 1] / (gains[i - 1] - gains[i])
            return batches[i - 1] * (batches[i] / batches[i - 1]) ** share
    return None


def spoken(batch: float | None) -> str:
    return f"no batch up to {BATCHES[-1]}" if batch is None else f"a batch of {batch:.0f}"


# --- beside others -------------------------------------------------------------------------------------------


def beside_peers(model: Transformer, rounds: int) -> list[Row | str]:
    """A decode step with our layers, beside the same step with others' layers on the same weights."""
    return [*beside("int8-vs-torchao", model, "int8-weight-only", torchao_int8(), rounds),
            *beside("int4-vs-peer", model, "int4", torchao_int4() | bitsandbytes_nf4(), rounds)]


def beside(name: str, model: Transformer, scheme: str, peers: dict[str, Callable[[nn.Module], None]],
           rounds: int) -> list[Row | str]:
    """Ours beside the fastest of the peers that runs here; each may choose between float32 and bfloat16 activations."""
    theirs, notes = {}, []
    for peer, convert in peers.items():
        for dtype in (torch.float32, torch.bfloat16):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    steps = writing(converted(model, dtype, convert))
                    theirs[peer, dtype] = time_fn(steps, repeat=3, warmup=1).median_s / STEPS, steps
            except Exception as error:  # a peer may fail in any way: that is the result, and is told
                notes.append(f"{name}: {peer} does not run with {dtype}: {type(error).__name__}, {str(error)[:80]}")
    if not theirs:
        return [*notes, f"{name} is left out: no peer runs here. python -m pip install torchao bitsandbytes"]
    ours = {dtype: writing(quantize_model(copy.deepcopy(model).to(dtype), scheme))
            for dtype in (torch.float32, torch.bfloat16)}
    mine = min(ours, key=lambda dtype: time_fn(ours[dtype], repeat=3, warmup=1).median_s)
    (peer, dtype), (_, steps) = min(theirs.items(), key=lambda item: item[1][0])
    row = side_by_side(name, steps, ours[mine], 1, rounds=rounds)
    others = "; ".join(f"{p}, {d}: {1 / s:.0f} tokens/s" for (p, d), (s, _) in theirs.items())
    return [row, f"{name}: ours is {scheme} with {mine}; the peer is {peer} with {dtype}, the fastest of: {others}. "
            "Both run in our Transformer, one sequence.", *notes]


def converted(model: Transformer, dtype: torch.dtype, convert: Callable[[nn.Module], None]) -> Transformer:
    """The model with plain linear layers, which a peer then makes its own in place."""
    other = copy.deepcopy(model).to(dtype)
    for name, layer in list(other.named_modules()):
        if isinstance(layer, Linear):
            with torch.device("meta"):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
            owner, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(owner), leaf, plain)
    convert(other)
    return other


def torchao_int8() -> dict[str, Callable[[nn.Module], None]]:
    """torchao's int8 weight-only, a scale for each row; nothing where it is not installed."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        return {}
    return {"torchao's int8 weight-only": lambda model: quantize_(model, Int8WeightOnlyConfig())}


def torchao_int4() -> dict[str, Callable[[nn.Module], None]]:
    """torchao's ways to hold int4 in groups of 32 on a processor."""
    try:
        from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_
    except ImportError:
        return {}
    return {"torchao's int4, opaque": lambda model: quantize_(model, Int4WeightOnlyConfig(
                group_size=32, int4_packing_format="opaque")),
            "torchao's intx, int4": lambda model: quantize_(model, IntxWeightOnlyConfig(
                weight_dtype=torch.int4, granularity=PerGroup(32)))}


def bitsandbytes_nf4() -> dict[str, Callable[[nn.Module], None]]:
    """bitsandbytes' NF4, groups of 64."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes
    except ImportError:
        return {}

    def convert(model: nn.Module) -> None:
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                dtype = layer.weight.dtype
                made = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, bias=False,
                                                  compute_dtype=dtype, quant_type="nf4")
                made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4",
                                                         blocksize=64, compress_statistics=False)
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, made.to("cpu").eval())
    return {"bitsandbytes' NF4": convert}


# --- how long quantizing takes -------------------------------------------------------------------------------


def gptq_time(model: Transformer, documents: int = 8) -> list[Row | str]:
    """How often GPTQ of this model fits into a minute."""
    tokens = [encode(training_document(1, number).text)[: model.cfg.context] for number in range(documents)]
    time_s = time_fn(lambda: quantize_layers(model, tokens, 4, 32), repeat=1, warmup=0).median_s
    plain_s = time_fn(lambda: quantize_model(model, "int4"), repeat=1, warmup=0).median_s
    fits = 60 / time_s
    return [Row("gptq-in-a-minute", fits, fits, fits, 1),
            f"gptq-in-a-minute: 60 s over the {time_s:.1f} s that GPTQ of the toy takes with "
            f"{sum(map(len, tokens)):,} tokens; plain int4 takes {plain_s:.2f} s."]
