"""The bench of the cost model: its targets hold, its rows come from the data, any file with the columns will do."""

import csv
import math

import pytest
from bench import cost

from llmflation import facts
from llmflation.cost.published import agreement, predicted, published_cases
from llmflation.cost.roofline import IDEAL, TYPICAL
from llmflation.errors import BadInputError
from llmflation.hardware import load_hardware


@pytest.fixture(scope="module")
def cases():
    return published_cases()[0]


def test_every_target_is_met():
    """Nothing here is timed: the same numbers come out on every machine."""
    rows, notes = cost.rows(quick=True)
    assert {row.name: row.met for row in rows} == dict.fromkeys(
        ["median-agreement", "p90-agreement", "cost-vs-genz", "cost-vs-llm-viewer", "cost-vs-llm-analysis",
         "cost-vs-mlsysim"], True)
    assert "over 2x" in notes[0] and "Wrong by more than 2x:" in notes
    assert any(note.startswith("left out, ") for note in notes)
    assert max(len(line) for note in notes for line in note.splitlines()) <= cost.WIDTH


def test_every_row_is_predicted_or_counted_with_a_reason():
    found, why = published_cases()
    assert len(found) + why.total() == len(facts.read("serving_benchmarks"))
    complete = [row for row in facts.read("serving_benchmarks")
                if all(row[column] is not None for column in ("model_key", "accelerator_key", "precision", "input_len",
                                                              "output_len"))]
    assert [c.id for c in found] == [row["row_id"] for row in complete]


def test_the_constants_are_what_the_calibration_rows_say(cases):
    assert cost.fit([c for c in cases if c.calibrates]) == TYPICAL
    assert 0.2 < sum(c.calibrates for c in cases) / len(cases) < 0.3


def test_no_published_row_beats_the_bound(cases):
    """But for one with a draft model, whose steps write several tokens, and one that all but fills its chip: its batch
    is the larger the more bytes the chip holds above the data sheet's."""
    assert {c.id for c in cases if (predicted(c, IDEAL) > c.value) == c.is_time} == {"b168", "b308"}


def test_every_row_that_is_off_by_twice_has_a_reason_and_every_reason_such_a_row(cases):
    """Rows close to twice may have one, too: the constants move a little with each fit."""
    agreed = {c.id: agreement(predicted(c), c.value) for c in cases}
    assert {name for name, a in agreed.items() if a < 0.5} <= set(cost.WHY)
    assert {name: a for name, a in agreed.items() if name in cost.WHY and a > 0.6} == {}
    assert set(cost.WHY) <= set(agreed)
    listed = "\n".join(cost.off_by_twice([(c, predicted(c)) for c in cases], cost.WHY))
    assert all((name in listed) == (a < 0.5) for name, a in agreed.items()) and "no reason" not in listed


def test_the_reasons_follow_from_the_rows(cases):
    rows, by_id = {row["row_id"]: row for row in facts.read("serving_benchmarks")}, {c.id: c for c in cases}
    for name, reason in cost.WHY.items():
        if reason == cost.UNTUNED:
            assert "untuned, launch-bound" in rows[name]["note"] and "experimental" in rows[name]["note"]
    capped, full = by_id["b064"], by_id["b338"]
    assert 1000 * capped.batch / (predicted(capped) * capped.chips) > rows["b064"]["tpot_limit_ms"] and capped.fills
    assert full.fills and "sparse" in rows["b338"]["model"]


GOOD = {"row_id": "x1", "model_key": "Llama-3.1-8B", "accelerator_key": "H100 SXM5 80GB", "precision": "fp8",
        "input_len": "1000", "output_len": "1000", "metric": "output throughput per accelerator", "value": "9000",
        "accelerator_count": "1", "parallelism": "TP1", "batch_or_concurrency": "64"}


def test_a_row_of_text_reads_as_one_of_the_table():
    """The other tests change one cell of this row: as it stands it must be read."""
    (c,), why = published_cases([GOOD])
    assert not why and (c.n_in, c.n_out, c.batch, c.chips, c.value, c.fills) == (1000, 1000, 64, 1, 9000, False)
    own = facts.read("serving_benchmarks")
    as_text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in own]
    assert published_cases(as_text) == published_cases(own)


@pytest.mark.parametrize("change", [
    {"precision": "FP8"}, {"metric": "Output throughput per accelerator"}, {"accelerator_count": ""},
    {"accelerator_count": None}, {"parallelism": "tp1"}, {"batch_or_concurrency": "64.0"},
    {"batch_or_concurrency": "64 per GPU"}, {"batch_or_concurrency": "64 requests"}, {"input_len": "999.7"},
    {"value": "9e3"}, {"unit": "output tok/s/accelerator"}, {"kv_precision": "FP8 (assumed)"},
])
def test_other_ways_to_write_a_row_mean_the_same(change):
    (c,), _ = published_cases([GOOD])
    row = {k: v for k, v in (GOOD | change).items() if v is not None}
    assert published_cases([row])[0] == [c]


@pytest.mark.parametrize(("change", "reason"), [
    ({"metric": "goodput"}, "unknown metric 'goodput'"), ({"unit": "tok/min"}, "unit 'tok/min' of output throughput"),
    ({"value": "0"}, "value '0' is no plain number above 0"), ({"value": "-5"}, "value '-5'"),
    ({"value": ""}, "gives no value"),
    ({"value": "nan"}, "value 'nan'"), ({"value": "1e999"}, "value '1e999'"), ({"value": "1_000"}, "value '1_000'"),
    ({"batch_or_concurrency": "0"}, "'0' is no whole number of 1 or more"), ({"batch_or_concurrency": "-4"}, "'-4'"),
    ({"batch_or_concurrency": "2.5"}, "'2.5'"), ({"batch_or_concurrency": "8-16"}, "'8-16'"),
    ({"batch_or_concurrency": "1,5"}, "'1,5'"), ({"batch_or_concurrency": "8 per node"}, "neither per GPU nor"),
    ({"batch_or_concurrency": "100000"}, "100,000 requests of 1,501 tokens do not fit"),
    ({"accelerator_count": "2.5"}, "accelerator_count '2.5' is no whole number"),
    ({"accelerator_count": "0"}, "accelerator_count '0'"), ({"parallelism": "TP2"}, "more than the 1 of"),
    ({"accelerator_count": "3", "parallelism": "TP3"}, "chips is 3"), ({"parallelism": "TP0"}, "chips is 0"),
    ({"input_len": "a few"}, "input_len 'a few'"), ({"input_len": "0"}, "input_len '0'"),
    ({"output_len": "0.2"}, "output_len '0.2' is less than one token"), ({"kv_precision": "fp4"}, "kv_precision 'fp4'"),
    ({"precision": "fp5"}, "unknown precision 'fp5'"), ({"model_key": "No-Such-Model"}, "unknown model"),
    ({"model_key": "Llama-3.1-405B"}, "each of 1 x H100 SXM5 80GB lacks "), ({"input_len": "9e17"}, "does not fit"),
])
def test_a_row_that_cannot_be_predicted_is_left_out_for_a_reason(change, reason):
    found, why = published_cases([GOOD | change, GOOD])
    assert [c.id for c in found] == ["x1"] and why.total() == 1 and reason in next(iter(why))


def test_a_fact_that_the_hardware_table_lacks_leaves_the_row_out():
    hw = next(hw for hw in load_hardware().values() if not hw.peak_flops.keys() & {"bf16", "fp16"})
    found, why = published_cases([GOOD | {"accelerator_key": hw.name, "batch_or_concurrency": "1", "input_len": "10"}])
    assert not found and hw.name in next(iter(why))


def test_where_each_chip_reads_its_own_prompts_none_idles(cases):
    apart = [c for c in cases if c.stored["parallel"] == "expert"]
    assert apart and all(c.prompts >= min(c.batch, c.chips) for c in apart)


def test_words_without_a_number_at_once_mean_as_many_as_fit():
    for words in ("", "not stated", "as many as fit (not stated)", "256 per replica (cap)"):
        (c,), _ = published_cases([GOOD | {"batch_or_concurrency": words}])
        assert c.fills and c.batch > 64
    (c,), _ = published_cases([GOOD | {"batch_or_concurrency": "", "scenario": "one request"}])
    assert c.batch == 1 and not c.fills


@pytest.mark.parametrize(("metric", "unit"), [
    ("time to first token", "ms"), ("prefill time", "ms"), ("decode step time", "ms"), ("inter-token latency", "ms"),
])
@pytest.mark.parametrize("words", ["", "not stated", "256 per replica (cap)", "16,384 tokens a GPU"])
def test_a_time_without_a_batch_is_left_out(metric, unit, words):
    row = GOOD | {"metric": metric, "unit": unit, "batch_or_concurrency": words}
    assert published_cases([row]) == ([], {"gives no batch": 1})
    assert [c.batch for c in published_cases([row | {"batch_or_concurrency": "8"}])[0]] == [8]
    (c,), _ = published_cases([row | {"batch_or_concurrency": "as many as fit"}])
    assert c.batch > 64 and c.fills
    if words in ("", "not stated"):
        (c,), _ = published_cases([row | {"scenario": "one request"}])
        assert c.batch == 1 and not c.fills


def test_the_speed_of_one_request_is_that_of_one_unless_the_row_says_that_others_run_beside_it():
    speed = GOOD | {"metric": "Decode speed of one request", "unit": "tok/s", "value": "150"}
    for words, batch in ("", 1), ("not stated", 1), ("8", 8):
        (c,), _ = published_cases([speed | {"batch_or_concurrency": words}])
        assert c.batch == batch and not c.fills
    assert published_cases([speed | {"batch_or_concurrency": "64 (cap)"}]) == ([], {"gives no batch": 1})


MOE = GOOD | {"model_key": "DeepSeek-V3", "accelerator_key": "H200 SXM", "accelerator_count": "64",
              "batch_or_concurrency": "256"}


@pytest.mark.parametrize(("said", "chips", "parallel"), [
    *((said, 16, "tensor") for said in (  # without a number eight would be taken
        "TP16", "tp 16", "TP=16", "TP-16", "tensor parallel 16", "Tensor  Parallelism 16", "tensor-parallel-size 16",
        "tensor_parallel_size=16", "16-way TP", "16 way tensor parallelism", "16-way tensor-parallel", "TP8 PP2",
        "TP8 x PP2", "tensor parallel 8, pipeline parallel 2", "TP16 x 4", "TP16 x 4 replicas", "TP16, disaggregated",
        "TP16 with expert parallelism", "tensor parallel 16 with EP")),
    *((said, 16, "expert") for said in (
        "EP16", "ep=16", "Expert Parallel 16", "expert parallelism 16", "16-way EP", "EP16, disaggregated",
        "EP16 + DP16", "EP16 DP16 (2 nodes a decode unit)", "EP16 x 4")),
])
def test_what_column_parallelism_says_is_what_is_taken(said, chips, parallel):
    (c,), why = published_cases([MOE | {"parallelism": said}])
    assert not why and (c.chips, c.stored["parallel"]) == (chips, parallel)


@pytest.mark.parametrize("said", [
    "DEP16", "TP4EP4", "TP4 EP4", "TP8 EP8 replicas", "TP8 DP8", "EP16 DP4", "EP16 TP2", "EP1 DP16", "TP8-16", "TP8.5",
    "TP8 (2 nodes PP2)", "TP", "EP", "tensor parallel", "8 way", "8", "none", "DP8", "PP8", "4x4", "layer split",
    "TP8 with EP8", "MTP8", "TPU 8", "TP8 and more", "-",
])
def test_a_parallelism_that_is_not_known_leaves_the_row_out(said):
    found, why = published_cases([MOE | {"parallelism": said}])
    assert not found and f"unknown parallelism {said!r}; known: TP8" in next(iter(why))


def test_without_a_number_of_chips_the_fewest_are_taken_and_wide_ep_sets_experts_apart():
    for said, parallel in ("", "tensor"), ("Not stated", "tensor"), ("wide EP", "expert"):
        (c,), _ = published_cases([MOE | {"parallelism": said, "batch_or_concurrency": ""}])
        assert (c.chips, c.stored["parallel"]) == (8, parallel)


def test_the_projects_own_rows_are_read_as_they_say(cases):
    """Those of MiniMax share out the experts of a tensor-parallel model: counted as tensor parallel, on purpose."""
    rows = {row["row_id"]: row for row in facts.read("serving_benchmarks")}
    mini = [c for c in cases if rows[c.id]["parallelism"] == "TP8 with expert parallelism"]
    assert len(mini) == 7 and {(c.chips, c.stored["parallel"]) for c in mini} == {(8, "tensor")}
    unread = set()
    for said in {row["parallelism"] or "" for row in rows.values()}:
        _, why = published_cases([MOE | {"parallelism": said, "accelerator_count": "256"}])
        if any("unknown parallelism" in reason for reason in why):
            unread.add(said)
    assert unread == {"4x4", "layer split over 8 GPUs", "TP8 EP8 replicas"}


def test_a_count_per_gpu_is_multiplied_by_the_gpus_and_no_more_chips_are_taken_than_there_are():
    wide = GOOD | {"accelerator_count": "4", "parallelism": "TP4", "batch_or_concurrency": "16 per GPU"}
    assert published_cases([wide])[0][0].batch == 64
    three = GOOD | {"model_key": "Llama-3.1-70B", "precision": "bf16", "accelerator_count": "3", "parallelism": "",
                    "input_len": "8000", "batch_or_concurrency": "4"}
    assert [c.chips for c in published_cases([three])[0]] == [2]  # eight would need four


def _file(tmp_path, *rows):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({k: "" if row[k] is None else row[k] for k in row} for row in rows)
    return path


def test_another_file_with_the_columns_is_scored_whole(tmp_path):
    some = [row for row in facts.read("serving_benchmarks") if row["row_id"] in ("b137", "b139", "b280")]
    path = _file(tmp_path, *some)
    found, notes = cost.rows(False, ["--rows", str(path)])
    assert [row.name for row in found] == ["median-agreement", "p90-agreement"]
    assert "3 rows can be predicted, 3 of them are scored." in notes and "No row is wrong by more than 2x." in notes


def test_a_strangers_row_that_is_off_shows_its_own_engine_and_note(tmp_path):
    path = _file(tmp_path, GOOD | {"engine": "", "note": ""},
                 GOOD | {"row_id": "b350", "value": "1", "engine": "Abacus 2", "note": "by hand"})
    text = "\n".join(cost.rows(False, ["--rows", str(path)])[1])
    assert "  b350: engine Abacus 2; note: by hand" in text and cost.UNTUNED[:30] not in text


@pytest.mark.parametrize(("column", "cell"), [
    ("value", "abc"), ("value", "9,000"), ("value", "$3"), ("value", "nan"), ("output_len", "long"),
    ("accelerator_count", "two"),
])
def test_a_word_where_a_number_must_stand_is_one_error_with_its_place(tmp_path, column, cell):
    path = _file(tmp_path, GOOD, GOOD | {column: cell})
    with pytest.raises(BadInputError) as error:
        cost.rows(False, ["--rows", str(path)])
    parts = ("rows.csv line 3", repr(column), repr(cell), "Write a plain number")
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(("text", "says"), [
    ("", "lacks the columns"),
    ("row_id,model_key\nx,y\n", "lacks the columns accelerator_key"),
    ("row_id,model_key,accelerator_key,precision,input_len,output_len,metric,value\n"
     "x,No-Such-Model,H100 SXM5 80GB,fp8,128,128,output throughput per accelerator,5\n",
     "no row can be predicted.*unknown model"),
    (f"{','.join(GOOD)}\n", "no row can be predicted. It has no rows"),
    (f"{','.join(GOOD)}\nx1,Llama-3.1-8B\n", "line 2 has fewer cells"),
    (f"{','.join(GOOD)}\n{','.join(GOOD.values())},more\n", "line 2 has more cells"),
    (f"{','.join(GOOD)},value\n{','.join(GOOD.values())},5\n", "column 'value' 2 times"),
    (f"{','.join(GOOD)}\n\"x", "cannot be read"),
])
def test_a_file_that_cannot_be_scored_is_one_error(tmp_path, text, says):
    path = tmp_path / "rows.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(BadInputError, match=says):
        cost.rows(False, ["--rows", str(path)])


def test_a_file_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(BadInputError, match="cannot be read"):
        cost.rows(False, ["--rows", str(tmp_path / "none.csv")])


def test_agreement_is_one_for_equals_and_symmetric():
    assert agreement(3.0, 3.0) == 1 and agreement(2.0, 5.0) == agreement(5.0, 2.0) == pytest.approx(0.4)


def test_one_factor_sets_a_peer_right_without_touching_ours():
    row, note = cost.beside("genz", published_cases()[0])
    assert row.ratio > 1.5 and math.isfinite(row.high) and "multiplied by" in note


def test_the_peers_were_asked_about_the_cases_that_we_predict(cases):
    """cases.csv holds the numbers of today's library; make_cases.py writes it anew."""
    from bench.peers import make_cases
    from bench.peers.rows import CASES

    rows = {row["row_id"]: row for row in facts.read("serving_benchmarks")}
    with CASES.open(newline="", encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    fresh = [{k: "" if v is None else str(make_cases._short(v)) for k, v in make_cases.described(c, rows[c.id]).items()}
             for c in cases]
    assert stored == fresh
