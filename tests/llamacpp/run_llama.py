"""llama.cpp in a process of its own, without PyTorch: a JSON question on standard input, the answer on standard output.

{"model": path, "sequences": [[ids], ...], "new": n, "texts": [str, ...]} gives for each sequence `best`, the likeliest
next token at every position, `last`, the scores behind the last one, and `written`, n tokens in greedy order; for each
text its token `ids`. Keys and values are kept in float32, as in our caches: llama.cpp's own choice is float16. With
"widened": path, llama.cpp first makes the weights float32 and writes them there: they are computed with as floats then.
With "at_once": n it reads so many tokens in a call, else 512.
"""

import ctypes
import json
import os
import sys

import llama_cpp


def main() -> None:
    asked = json.load(sys.stdin)
    longest = max(map(len, asked["sequences"]), default=0) + asked.get("new", 0)
    if widened := asked.get("widened"):
        widen(asked["model"], widened)
    llama = llama_cpp.Llama(widened or asked["model"], n_ctx=max(longest, 64), n_batch=asked.get("at_once", 512),
                            logits_all=True,
                            n_threads=os.cpu_count() or 1, type_k=llama_cpp.GGML_TYPE_F32,
                            type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False, verbose=False)
    answer = {"ids": [llama.tokenize(text.encode(), add_bos=False, special=False) for text in asked.get("texts", ())],
              "version": llama_cpp.__version__, "n_vocab": llama.n_vocab(), "sequences": []}
    for ids in asked["sequences"]:
        llama.reset()
        llama.eval(ids)
        scores = llama.scores[: len(ids)]
        best, last, written = scores.argmax(-1).tolist(), scores[-1].tolist(), []
        for _ in range(asked.get("new", 0)):
            written.append(int(llama.scores[llama.n_tokens - 1].argmax()))
            llama.eval(written[-1:])
        answer["sequences"].append({"best": best, "last": last, "written": written})
    json.dump(answer, sys.stdout)


def widen(path: str, made: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
    if llama_cpp.llama_model_quantize(path.encode(), made.encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not widen {path}")


if __name__ == "__main__":
    main()
