"""Laws of the cloze set: four endings of which one is true, and nothing but knowledge tells which."""

import re
from collections import Counter

import pytest

from llmflation import facts

ROWS = facts.read("cloze")
ENDINGS = ("answer", "wrong_1", "wrong_2", "wrong_3")  # the true one first
ARTICLES = ("a ", "an ", "the ")
# Words whose first letter and first sound differ: "an hour", "a unit".
VOWEL_SOUND = re.compile(r"(?!(uni(?!n)|use|euro|one\b|once\b|ewe))[aeiou]|hour|honest|heir", re.I)


def endings(row):
    return [row[column] for column in ENDINGS]


def broken(rows):
    return "; ".join(f"{row.where}: {row['prompt']!r} {endings(row)}" for row in rows)


def hits_of(choose, size):
    """The share of rows that one gets right who looks at the size of the endings alone; ties are split."""
    share = 0.0
    for row in ROWS:
        sizes = [size(text) for text in endings(row)]
        if sizes[0] == choose(sizes):
            share += 1 / sizes.count(sizes[0])
    return share / len(ROWS)


def test_there_are_enough_for_a_verdict():
    assert len(ROWS) >= 240


def test_ids_count_from_one():
    assert [row["row_id"] for row in ROWS] == [f"c{i:03d}" for i in range(1, len(ROWS) + 1)]


def test_topics_are_many_and_none_rules():
    count = Counter(row["topic"] for row in ROWS)
    assert len(count) >= 10
    assert max(count.values()) <= 0.2 * len(ROWS), count.most_common(1)
    assert min(count.values()) >= 5, f"{count.most_common()[-1]} is hardly a topic: a slip of the pen?"


def test_the_four_endings_differ():
    assert not (bad := [r for r in ROWS if len({text.casefold() for text in endings(r)}) < 4]), broken(bad)


def test_no_ending_stands_in_the_prompt():
    """The true one would be given away, a wrong one ruled out."""
    bad = [
        row
        for row in ROWS
        if any(re.search(rf"\b{re.escape(text)}\b", row["prompt"], re.I) for text in endings(row))
        or (len(row["answer"]) > 3 and row["answer"].casefold() in row["prompt"].casefold())
    ]
    assert not bad, broken(bad)


def test_no_two_rows_ask_the_same():
    words = Counter(re.sub(r"\W+", " ", row["prompt"].casefold()) for row in ROWS)
    assert not (twice := [prompt for prompt, n in words.items() if n > 1]), twice
    same = Counter((row["answer"], *sorted(text.casefold() for text in endings(row))) for row in ROWS)
    assert max(same.values()) <= 2, same.most_common(3)


def test_no_answer_is_right_too_often():
    """Else a model would score by liking one word."""
    word, n = Counter(row["answer"].casefold() for row in ROWS).most_common(1)[0]
    assert n <= 5, f"{word!r} is the answer of {n} rows"


def test_prompts_stop_where_the_ending_begins():
    for row in ROWS:
        prompt = row["prompt"]
        assert prompt == prompt.strip() and "  " not in prompt, row.where
        assert re.search(r"[a-z0-9]$", prompt), f"{row.where}: the sentence is over before its ending"
        assert prompt[0].isupper() and 2 <= len(prompt.split()) <= 20, row.where


def test_endings_are_short_and_of_one_kind():
    for row in ROWS:
        texts = endings(row)
        assert all(re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9 -]*[A-Za-z0-9])?", t) for t in texts), row.where
        assert all("  " not in t and len(t.split()) <= 4 for t in texts), row.where
        words = [len(t.split()) for t in texts]
        assert words[0] <= max(words[1:]) + 1 and words[0] >= min(words[1:]) - 1, broken([row])
        assert len({t[0].isupper() for t in texts}) == 1, f"{broken([row])}: capitals tell which"
        assert len({t[0].isdigit() for t in texts}) == 1, broken([row])


def test_plain_ascii():
    """An accent is two bytes and often two tokens: it would weigh on one ending and not on the others."""
    assert not (bad := [r for r in ROWS if not (r["prompt"] + "".join(endings(r))).isascii()]), broken(bad)


@pytest.mark.parametrize("size", [len, lambda text: len(text.split())], ids=["letters", "words"])
@pytest.mark.parametrize("choose", [min, max], ids=["shortest", "longest"])
def test_length_does_not_give_the_answer_away(choose, size):
    assert 0.15 < hits_of(choose, size) < 0.40


def test_the_article_fits_all_four():
    for row in ROWS:
        last = row["prompt"].split()[-1].casefold()
        sounds = {bool(VOWEL_SOUND.match(text)) for text in endings(row)}
        if last in ("a", "an"):
            assert sounds == {last == "an"}, broken([row])
        with_article = {text.casefold().startswith(ARTICLES) for text in endings(row)}
        assert len(with_article) == 1, broken([row])
        assert not (last in ("a", "an", "the") and True in with_article), broken([row])


@pytest.mark.parametrize(
    "word, vowel",
    [
        ("oven", True),
        ("igloo", True),
        ("hour", True),
        ("umbrella", True),
        ("uninteresting word", True),
        ("horse", False),
        ("unit", False),
        ("European", False),
        ("one-way street", False),
        ("useful tool", False),
    ],
)
def test_the_rule_for_articles_goes_by_sound(word, vowel):
    assert bool(VOWEL_SOUND.match(word)) == vowel


def test_what_needs_no_source_says_so():
    for row in ROWS:
        common = row["source_title"] == "common knowledge"
        assert common == (row["source_url"] is None), f"{row.where}: a source and its address go together"
        assert row["verified"] == "yes", f"{row.where}: a doubtful fact judges nobody, drop it"
