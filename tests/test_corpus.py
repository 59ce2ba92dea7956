"""Laws of the corpus: right answers, splits that never meet, spans, floors, the same text everywhere."""

import doctest
import itertools
import lzma
import math
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmflation import corpus
from llmflation.corpus import DOMAINS, SPLITS, Problem, check, decode, encode, look_up_at, problems, training_document
from llmflation.errors import BadInputError, UnknownNameError

NAMES = list(DOMAINS)
LIB = Path(corpus.__file__).parents[1]


# A second opinion: answer, size and content of a prompt, computed from its text alone.


def judge_sums(text):
    a, op, b = text[:-1].partition("+") if "+" in text else text[:-1].partition("-")
    x, y = (int(a), int(b)) if op == "+" else (int(a) - int(b), int(b))
    low, high = sorted((x, y))
    columns = list(zip(f"{x:03}"[::-1], f"{y:03}"[::-1]))
    carry, carries = 0, []
    for c, d in columns:
        carry = int(int(c) + int(d) + carry > 9)
        carries.append(carry)
    size = 4 if high > 99 and carries[:2] == [1, 1] else len(str(high))
    return str(x + y if op == "+" else x), size, (low, high)


def judge_products(text):
    a, b = map(int, text[:-1].split("*"))
    tens, ones = (sum(n for _ in range(b)) for n in (a - a % 10, a % 10))
    ripples = (tens + ones) // 100 != tens // 100
    answer = str(ones) if a < 10 else f"{tens}+{ones}={tens + ones}"
    return answer, 1 if a < 10 else 3 if ripples else 2, tuple(sorted((a, b)))


def judge_look_up(text):
    pairs, _, asked = text.partition("\n")
    known = dict(pair.split("=") for pair in pairs.split(" "))
    assert len(known) == pairs.count("=") and {len(key) for key in known} == {2}
    doublings = int(math.log2(len(known)))
    few = "abcdefghijklmnop"[: {4: 6, 5: 8, 6: 12, 7: 16}.get(doublings, 0)]
    hard = set("".join(known)) <= set(few)
    return known[asked[:-1]], doublings + 5 * hard, frozenset(known.items())


def judge_states(text):
    *told, asked = text.split("\n")
    where = {}
    for line in told:
        thing, how, what, *noted = line.replace(",", " ").split(" ")
        where[thing] = what if how == "in" else where[what]
        assert noted == ([] if how == "in" else ["in", where[thing], thing, "in", where[thing]])
    thing, by, other, *rest = asked.split(" ")
    assert (by, rest) == ("by", ["in", ""])
    return f"{where[other]},{thing} in {where[other]}", len(told) - 3, tuple(told[:4])


def judge_brackets(text):
    mirror, still_open, depth = dict(zip("([{<", ")]}>")), [], 0
    for c in text[:-1]:
        if c in mirror:
            still_open.append(mirror[c])
        else:
            assert still_open.pop() == c
        depth = max(depth, len(still_open))
    return "".join(reversed(still_open)), depth, text


def judge_units(text):
    n, unit = text[:-1].split()
    factor, smaller = {
        "minute": "60 second", "hour": "60 minute", "chain": "4 rod", "week": "7 day", "year": "12 month",
        "decade": "10 year", "century": "100 year", "cm": "10 mm", "m": "100 cm", "km": "1000 m", "foot": "12 inch",
        "yard": "3 foot", "fathom": "6 foot", "kg": "1000 g", "league": "3 mile", "mile": "8 furlong",
        "litre": "1000 ml", "gallon": "4 quart", "quart": "2 pint", "hand": "4 inch", "dollar": "100 cent",
        "nickel": "5 cent", "byte": "8 bit", "score": "20 piece",
    }[unit].split()  # fmt: skip
    return f"{int(n) * int(factor)} {smaller}", math.ceil(int(n) / 10), (int(n), unit)


def judge_code(text):
    *program, asked = text.split("\n")
    values = {}
    for number, line in enumerate([*program, asked]):
        statement, *noted = line.split(",")
        target, right = statement.split("=")
        names = [c for c in right if c.isalpha()]
        given = right
        for name in names:
            given = given.replace(name, str(values[name]))
        a, sign, b = given.partition("-") if "-" in given else given.partition("+")
        values[target] = int(a) + int(sign + b) if sign else int(a)
        fetched = [f"{name}={values[name]}" for name in names if name != target]
        worked = [*fetched, f"{given}={values[target]}", f"{target}={values[target]}"] if sign else []
        assert 10 <= values[target] <= 99 and noted == (worked if number < len(program) else [f"{names[0]}="])
    answer = ",".join(worked).removeprefix(noted[0])
    return answer, len(program) + 1, (*program, asked + answer)[:2]


def judge_sorting(text):
    left, result = [int(n) for n in text[:-1].split(" ")], []
    while left:
        result.append(min(left))
        left.remove(min(left))
    hard = len(result) > 3 and len({n // 10 for n in result}) == 1
    return " ".join(map(str, result)), len(result) + 3 * hard, tuple(result)


JUDGES = {name: globals()["judge_" + name.replace("-", "_")] for name in NAMES}


def questions(document):
    """The problems in a document, read from its text: a scene ends with a blank line."""
    start = 0
    for a, b in document.answer_spans:
        blank = document.text.rfind("\n\n", 0, a)
        start = blank + 2 if blank >= 0 else 0
        lines = document.text[start:a].split("\n")
        if document.domain == "look-up":
            prompt = "\n".join([lines[0], lines[-1]])
        elif document.domain in ("states", "code"):
            prompt = "\n".join(lines)
        else:
            prompt = document.text[document.text.rfind("\n", 0, a) + 1 : a]
        yield Problem(document.domain, prompt, document.text[a : b - 1])


def documents(name, split, n=20, difficulty=1.0, max_bytes=1024):
    return [DOMAINS[name].document(Random(f"{split} {i}"), difficulty, max_bytes, split) for i in range(n)]


def test_worked_lines():
    assert doctest.testmod(corpus, raise_on_error=True).attempted >= 8


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_right_and_sizes_are_those_of_the_split(name, split):
    domain = DOMAINS[name]
    asked = problems(name, split, 60, seed=7)
    assert {p.domain for p in asked} == {name}
    for p in asked:
        answer, size, _ = JUDGES[name](p.prompt)
        assert (p.answer, size in (domain.hard if split == "hard" else domain.standard)) == (answer, True), p
        assert len(p.prompt + p.answer) < corpus.CONTEXT
    for p in itertools.chain.from_iterable(questions(d) for d in documents(name, split, 4)):
        answer, size, _ = JUDGES[name](p.prompt)
        assert p.answer == answer
        if domain.opens:  # what is asked on the way is smaller
            assert size <= (domain.hard if split == "hard" else domain.standard)[-1]
        else:
            assert size in (domain.hard if split == "hard" else range(domain.easiest, domain.standard[-1] + 1))


@pytest.mark.parametrize("name", NAMES)
def test_spans_are_the_answers_with_their_line_ends_and_documents_fit(name):
    for max_bytes, difficulty in itertools.product((256, 300, 999, 2048), (0, 0.5, 1)):
        d = DOMAINS[name].document(Random(3), difficulty, max_bytes)
        assert d.text.isascii() and 0.5 * max_bytes < len(d.text) <= max_bytes
        assert all(d.text[b - 1] == "\n" and "\n" not in d.text[a : b - 1] and a < b - 1 for a, b in d.answer_spans)
        assert all(b <= a for (_, b), (a, _) in itertools.pairwise(d.answer_spans))
        assert len(d.answer_spans) == sum(1 for _ in questions(d)) >= 1


def test_no_document_of_the_least_size_is_empty():
    for name, split in itertools.product(NAMES, SPLITS):
        for d in documents(name, split, 15, max_bytes=corpus.LEAST_BYTES):
            assert d.answer_spans and len(d.text) <= corpus.LEAST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_splits_never_share_a_question(name):
    """By content, whatever the order or form it is written in; measured on the text alone."""
    seen = {}
    for split in SPLITS:
        asked = [q for d in documents(name, split, 15) for q in questions(d)]
        asked += [q for d in documents(name, split, 5, difficulty=0) for q in questions(d)]
        seen[split] = {JUDGES[name](q.prompt)[2] for q in [*asked, *problems(name, split, 100, seed=5)]}
    assert all(seen.values())
    assert all(not seen[a] & seen[b] for a, b in itertools.combinations(SPLITS, 2))


def test_the_small_domains_are_divided_whole():
    """Every question there is lies in one split, about a tenth is held out, and no factor is held out alone."""
    splits = {}
    for a, b in itertools.product(range(10, 100), range(2, 10)):
        _, size, content = judge_products(f"{a}*{b}=")
        splits[content] = DOMAINS["products"].split_of(f"{content[0]},{content[1]}", size)
    for b in range(2, 10):
        assert {"train", "standard"} <= {splits[b, a] for a in range(10, 100)}
    assert len(splits) == 720 and 0.05 < sum(s == "standard" for s in splits.values()) / 592 < 0.15
    for unit in corpus._UNITS:
        halves = [DOMAINS["units"].split_of(f"{n} {unit}", math.ceil(n / 10)) for n in range(1, 101)]
        assert halves[60:] == ["hard"] * 40 and 2 <= halves[:60].count("standard") <= 15 and "hard" not in halves[:60]


def test_the_split_is_a_function_of_the_content_with_nine_of_ten_for_training():
    held = [DOMAINS["sorting"].split_of(f"{n}", 3) for n in range(4000)]
    assert set(held) == {"train", "standard"} and 0.08 < held.count("standard") / 4000 < 0.12
    assert {d.split_of("x", size) for d in DOMAINS.values() if not d.opens for size in d.hard} == {"hard"}
    opened = [DOMAINS["states"].split_of(f"{n}", 6) for n in range(4000)]
    assert opened == [DOMAINS["states"].split_of(f"{n}", 12) for n in range(4000)]
    assert opened.count("train") > 3500 and min(opened.count("standard"), opened.count("hard")) > 150
    assert not any(set(d.hard) & set(range(d.easiest, d.standard[-1] + 1)) for d in DOMAINS.values())


@pytest.mark.parametrize("name", NAMES)
def test_difficulty_moves_lengths(name):
    def mean_prompt(difficulty):
        found = [q for d in documents(name, "train", 12, difficulty) for q in questions(d)]
        return sum(len(q.prompt) for q in found) / len(found)

    assert mean_prompt(0) < mean_prompt(1)
    assert mean_prompt(0) <= mean_prompt(0.5) <= mean_prompt(1)


def test_domains_are_as_large_as_promised():
    assert set(DOMAINS["sums"].standard) == {2, 3} and max(len(p) for p in corpus._PRODUCTS.values()) > 500
    assert 2 ** DOMAINS["look-up"].standard[0] == 16 and DOMAINS["states"].standard[0] >= 6
    assert DOMAINS["brackets"].standard[-1] == 6 and len(corpus._UNITS) >= 20 and DOMAINS["code"].standard[0] >= 5


def test_look_up_reaches_the_full_context():
    reach = [len(p.prompt) - p.prompt.index(p.prompt.split("\n")[1]) for p in problems("look-up", "standard", 200, 1)]
    assert min(reach) < 60 and max(reach) > 1700
    for distance in (6, 600, 2040):
        for p in look_up_at(distance, 3, seed=2):
            answer, size, _ = judge_look_up(p.prompt)
            assert (answer, size) == (p.answer, 8) and len(p.prompt) == 2043
            assert p.prompt.index(p.prompt[-3:]) == len(p.prompt) - 3 - distance
            pairs = p.prompt.split("\n")[0].split(" ")
            assert DOMAINS["look-up"].split_of(" ".join(sorted(pairs)), 8) == "standard"


def ideal_bits(document):
    """What a coder that knows the rules pays for a document of difficulty 1, line by line. Of n sizes the one of rank r
    (from 0) is drawn in 2r + 1 of n * n cases."""
    name, lines = document.domain, document.text.splitlines()
    if name == "sums":
        counts = {1: 99, 2: 9900, 3: TRIPLES - HARD_TRIPLES, 4: HARD_TRIPLES}
        sizes = [judge_sums(line.partition("=")[0] + "=")[1] for line in lines]
        return sum(math.log2(9 / (2 * size - 1) * 2 * counts[size]) for size in sizes)
    if name == "products":
        return sum(math.log2(4 * 64 if len(line.partition("*")[0]) == 1 else 4 / 3 * 592) for line in lines)
    if name == "units":
        sizes = [math.ceil(int(line.split()[0]) / 10) for line in lines]
        return sum(math.log2(36 / (2 * size - 1) * 10 * 24) for size in sizes)
    if name == "sorting":
        counts = [line.partition(">")[0].count(" ") + 1 for line in lines]
        lists = [math.perm(100, n) - 10 * math.perm(10, n) * (n > 3) for n in counts]
        return sum(math.log2(25 / (2 * n - 3) * k) for n, k in zip(counts, lists))
    n, asked = lines[0].count("="), len(document.answer_spans)  # look-up, one scene
    least = 2 ** int(math.log2(n))
    rank = int(math.log2(n)) - 2
    return sum(map(math.log2, [16 / (2 * rank + 1), least, math.perm(676, n), 90**n, math.perm(n, asked)]))


TRIPLES = 1000**2 - 100**2
# Pairs of last two digits that carry twice, times the hundreds in front of them, which are not both 0.
HARD_TRIPLES = 99 * sum(x % 10 + y % 10 > 9 and x + y > 99 for x, y in itertools.product(range(100), repeat=2))


@pytest.mark.parametrize("name", ["sums", "products", "units", "sorting"])
def test_the_floor_is_what_an_ideal_coder_pays(name):
    for d in documents(name, "train", 5):
        assert d.bits == pytest.approx(ideal_bits(d))


def test_the_floor_of_look_up_counts_keys_values_and_order():
    """In 256 bytes, with sizes 2 to 5 to choose from, one context and no room for another."""
    some = documents("look-up", "train", 40, max_bytes=256)
    found = [d for d in some if "\n\n" not in d.text and d.text.splitlines()[0].count("=") < 32]
    assert found
    assert [d.bits for d in found] == pytest.approx([ideal_bits(d) for d in found])


@pytest.mark.parametrize("name", NAMES)
def test_no_compressor_goes_below_the_floor(name):
    some = documents(name, "train", 40, max_bytes=2048)
    text = "".join(d.text for d in some).encode()
    packed = 8 * len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}]))
    floor = sum(d.bits for d in some)
    assert 0.2 * len(text) < floor < packed


def test_mixing_is_even_and_each_document_stands_alone():
    stream = list(itertools.islice(corpus.training_documents(4, 0.5, 512), 24))
    for i in (0, 8, 16):
        assert sorted(d.domain for d in stream[i : i + 8]) == sorted(NAMES)
    assert stream[13] == training_document(4, 13, 0.5, 512)
    assert stream[5:] == list(itertools.islice(corpus.training_documents(4, 0.5, 512, start=5), 19))
    assert stream[0] != training_document(5, 0, 0.5, 512)
    assert len({d.text for d in stream}) == 24


FINGERPRINT = """
import hashlib
from llmflation import corpus
text = "".join(corpus.training_document(9, i).text for i in range(16))
text += repr([corpus.problems(d, s, 3, 9) for d in corpus.DOMAINS for s in corpus.SPLITS])
text += repr(corpus.look_up_at(60, 1, 9))
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_text_in_every_process_and_version():
    seen = set()
    for hash_seed in ("0", "4242"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(LIB)}
        done = subprocess.run([sys.executable, "-c", FINGERPRINT], env=env, capture_output=True, text=True, check=True)
        seen.add(done.stdout.strip())
    # A checkpoint's scores belong to this text. When problems have to change, judge again; when documents, train again.
    assert seen == {"f491553c7261599e77b408de0fae08ab342c6b9e80aec566e6319af79b4bc5ba"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_survives_the_round_trip(text):
    assert decode(encode(text)) == text
    assert decode([corpus.BOS, *encode(text), corpus.EOS, corpus.PAD]) == text


def test_emoji_and_combining_marks_are_bytes():
    for text in ("👩‍🚀 ok", "e\u0301 \u0928\u093f", "", "\x00\n"):
        assert decode(encode(text)) == text and encode(text) == list(text.encode())


@given(st.lists(st.integers(0, corpus.VOCAB_SIZE - 1)))
def test_any_ids_decode(ids):
    text = decode(ids)
    assert text.encode() and "\ufffd" in text if any(i > corpus.PAD for i in ids) else isinstance(text, str)


def test_check_wants_the_whole_line():
    p = Problem("sums", "12+34=", "46")
    assert check(p, "46\n") and check(p, "46\n1+1=2\n")
    assert not any(check(p, wrong) for wrong in ("46", "461\n", " 46\n", "46 \n", "4\n6\n", "", "\n46\n"))


BAD = {
    "no such domain": (lambda: problems("sum", "hard", 1, 0), UnknownNameError, "'sum'; nearest: 'sums'"),
    "unhashable domain": (lambda: problems([], "hard", 1, 0), UnknownNameError, "unknown domain"),
    "no such split": (lambda: problems("sums", "easy", 1, 0), UnknownNameError, "unknown split 'easy'"),
    "no problems": (lambda: problems("sums", "hard", 0, 0), BadInputError, "n is 0; allowed: a whole number of 1"),
    "seed as text": (lambda: problems("sums", "hard", 1, "0"), BadInputError, "seed is '0'"),
    "seed as truth": (lambda: training_document(True, 0), BadInputError, "seed is True"),
    "number below 0": (lambda: training_document(0, -1), BadInputError, "number is -1"),
    "start below 0": (lambda: next(corpus.training_documents(0, start=-1)), BadInputError, "number is -1"),
    "too little room": (lambda: problems("sums", "hard", 1, 0, 255), BadInputError, "of 256 or more"),
    "a seed for a generator": (lambda: DOMAINS["code"].document(1), BadInputError, "Pass random.Random"),
    "too difficult": (lambda: DOMAINS["code"].document(Random(1), 1.01), BadInputError, "from 0 to 1"),
    "difficulty NaN": (lambda: DOMAINS["code"].document(Random(1), math.nan), BadInputError, "difficulty is nan"),
    "split of a document": (lambda: DOMAINS["code"].document(Random(1), split="x"), UnknownNameError, "unknown split"),
    "between two pairs": (lambda: look_up_at(7, 1, 0), BadInputError, "distance is 7; allowed: a multiple of 6"),
    "beyond the context": (lambda: look_up_at(2046, 1, 0), BadInputError, "from 6 to 2040"),
    "bytes for text": (lambda: encode(b"x"), BadInputError, "Decode bytes first"),
    "a lone surrogate": (lambda: encode("ok \ud800"), BadInputError, "surrogates"),
    "an id too high": (lambda: decode([65, 320]), BadInputError, "token id is 320; allowed: a whole number, 0 to 319"),
    "an id below 0": (lambda: decode([-1]), BadInputError, "token id is -1"),
    "an id and a half": (lambda: decode([1.5]), BadInputError, "token id is 1.5"),
    "ids for text": (lambda: check(Problem("sums", "1+1=", "2"), [50, 10]), BadInputError, "Use decode"),
    "one id": (lambda: decode(65), BadInputError, "ids is 65"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(case):
    call, kind, says = BAD[case]
    with pytest.raises(kind) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value)
