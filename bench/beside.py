"""One of our models beside Hugging Face's `transformers` with the same weights: who writes more tokens in a second."""

import tempfile
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from llmflation.checkpoint import save_checkpoint, to_hugging_face
from llmflation.kvcache import ContiguousKVCache
from llmflation.linear import linear_path
from llmflation.model import Transformer, generate
from llmflation.timing import time_fn

from .rows import Row, side_by_side

ABSENT = "Not beside transformers, which is not installed: python -m pip install transformers accelerate"


def quiet_transformers() -> bool:
    """Whether it is installed; it says nothing on its way from now on."""
    try:
        import transformers
    except ImportError:
        return False
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return True


def beside(name: str, model: Transformer, prompt_tokens: int, target: float, rounds: int, new: int) -> list[Row | str]:
    """Ours and theirs read the same prompt and write `new` tokens greedily, each with its own cache."""
    dtype, numbers = model.embedding.weight.dtype, torch.Generator().manual_seed(0)
    prompt = torch.randint(0, min(256, model.cfg.vocab_size), (1, prompt_tokens), generator=numbers)

    def ours() -> list[int]:
        return generate(model, prompt.tolist(), new, ContiguousKVCache(model.cfg, 1, prompt_tokens + new, dtype))[0]

    (attention, cache), theirs = hugging_face(model, prompt, new)
    row = side_by_side(name, theirs, ours, target, rounds=rounds)
    speed = new / time_fn(ours, repeat=1, warmup=0).median_s
    equal = sum(a == b for a, b in zip(ours(), theirs(), strict=True))
    return [row, f"{name}: ours writes {speed:.0f} tokens/s, {new} tokens after {prompt_tokens}, {dtype}, path "
            f"{linear_path(dtype)!r}; theirs is generate() under inference_mode, greedy, with its {cache} cache and "
            f"the attention {attention!r}, the fastest here; {equal} of the {new} tokens are the same."]


def hugging_face(model: Transformer, prompt: Tensor, new: int) -> tuple[tuple[str, str], Callable[[], list[int]]]:
    """The fastest of their kinds of attention and of cache, and a function that writes with them."""
    from transformers import GenerationConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, model.cfg, model.state_dict())
        other = LlamaForCausalLM.from_pretrained(folder, dtype=model.embedding.weight.dtype).eval()
    other.load_state_dict(to_hugging_face(model.state_dict(), model.cfg), strict=False, assign=True)
    other.tie_weights()  # they read the very same memory as ours: no second copy of a large model
    mask = torch.ones_like(prompt)

    def writer(attention: str, cache: str) -> Callable[[], list[int]]:
        kind = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
        setting = GenerationConfig(max_new_tokens=new, do_sample=False, use_cache=True, eos_token_id=None, **kind)

        @torch.inference_mode()
        def write() -> list[int]:
            if other.config._attn_implementation != attention:
                other.set_attn_implementation(attention)
            return other.generate(prompt, attention_mask=mask, generation_config=setting)[0, -new:].tolist()
        return write

    writers = {kind: writer(*kind) for kind in product(("sdpa", "eager"), ("dynamic", "static"))}
    times = dict.fromkeys(writers, float("inf"))
    for _ in range(2):  # in turns: the first of each warms up
        for kind, write in writers.items():
            times[kind] = min(times[kind], time_fn(write, repeat=1, warmup=0).median_s)
    best = min(times, key=times.get)
    return best, writers[best]
