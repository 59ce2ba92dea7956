"""One reader for every table under `data/`: it takes nothing on trust and fills nothing in.

A table is UTF-8, comma separated, one header line; an empty cell means "not known" and reads as None.
`data/README.md` says what the rows and columns mean; `SCHEMAS` below says what may stand in them.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from llmflation.errors import DataError, MissingFactError, UnknownNameError, nearest, unknown_name

DATA_DIR = Path(__file__).parent / "data"

Value = str | float | int | bool | date | None


@dataclass(frozen=True)
class Column:
    """What a cell may hold. `kind`: text, number, integer, date, yes-no or choice; bounds are inclusive."""

    kind: str = "text"
    required: bool = False
    low: float | date | None = None
    high: float | date | None = None
    above: float | None = None  # the value must be strictly greater
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schema:
    """The columns of a table and those that name a row."""

    key: tuple[str, ...]
    columns: Mapping[str, Column]


class Row(Mapping):
    """One row, read-only: `row["date"]` is a value or None, `row.require("date")` a value or an error."""

    __slots__ = ("_values", "file", "key", "line")

    def __init__(self, values: dict[str, Value], file: str, line: int, key: str):
        self._values, self.file, self.line, self.key = values, file, line, key

    def __getitem__(self, column: str) -> Value:
        if column in self._values:
            return self._values[column]
        raise unknown_name(f"column of {self.file}", column, self._values)

    def __contains__(self, column: object) -> bool:
        return column in self._values  # without the search for near names that an error would make

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<{self.where}: {self.key}>"

    @property
    def where(self) -> str:
        """File and line, as in 'token_prices.csv line 14'."""
        return f"{self.file} line {self.line}"

    def require(self, column: str) -> Value:
        """The value in `column`; MissingFactError where the table leaves it empty."""
        value = self[column]
        if value is None:
            raise MissingFactError(
                f"{self.where} ({self.key}) has no value in column {column!r}: its source gives "
                f"none, and the library does not guess. Choose another row, or add the value "
                f"with its source to {self.file}."
            )
        return value


TEXT, NUMBER, YES_NO = Column(), Column("number"), Column("yes-no")
POSITIVE = Column("number", above=0)
COUNT, COUNT_OR_ZERO = Column("integer", low=1), Column("integer", low=0)
SCORE = Column("number", low=0, high=100)
DATE = Column("date", low=date(2000, 1, 1), high=date(2100, 1, 1))


def need(column: Column) -> Column:
    """The same column, but no cell of it may be empty."""
    return replace(column, required=True)


def choice(*words: str) -> Column:
    """A column that holds one of `words` in every row."""
    return Column("choice", required=True, choices=words)


def _table(key: str, *groups: tuple[Column, str]) -> Schema:
    columns = {name: column for column, names in groups for name in names.split()}
    return Schema(tuple(key.split()), columns)


_SOURCE = (
    (TEXT, "source_title source_url note"),
    (DATE, "source_date"),
    (choice("yes", "partial", "no"), "verified"),
)

SCHEMAS: Mapping[str, Schema] = {
    "accelerators": _table(
        "name",
        (need(TEXT), "name vendor interconnect"),
        (need(DATE), "launch_date"),
        (POSITIVE, "fp32_tflops tf32_tflops bf16_tflops fp8_tflops int8_tops fp4_tflops process_nm transistors_b"),
        (YES_NO, "has_bf16"),
        (need(POSITIVE), "hbm_gb hbm_tb_s tdp_w"),
        (POSITIVE, "interconnect_gb_s msrp_or_estimate_usd"),
        (TEXT, "price_kind"),
        *_SOURCE,
    ),
    "cloze": _table(
        "row_id",
        (need(TEXT), "row_id prompt answer wrong_1 wrong_2 wrong_3 topic"),
        *_SOURCE,
    ),
    "electricity": _table(
        "row_id",
        (need(TEXT), "row_id region sector_or_operator period"),
        (choice("electricity price", "PUE"), "quantity"),
        (need(POSITIVE), "value"),
        (choice("USD/kWh", "ratio"), "unit"),
        *_SOURCE,
    ),
    "energy": _table(
        "row_id",
        (need(TEXT), "row_id quantity model unit included kind"),
        (TEXT, "model_key accelerator_key accelerator_count precision engine batch task"),
        (NUMBER, "value low high"),
        *_SOURCE,
    ),
    "gpu_rental_prices": _table(
        "accelerator provider date commitment instance",
        (need(TEXT), "accelerator provider commitment"),
        (TEXT, "instance"),
        (need(DATE), "date"),
        (need(POSITIVE), "usd_per_gpu_hour usd_per_instance_hour"),
        (need(COUNT), "gpus_per_instance"),
        *_SOURCE,
    ),
    "model_size_estimates": _table(
        "model",
        (need(TEXT), "model kind"),
        (POSITIVE, "active_params_b total_params_b"),
        *_SOURCE,
    ),
    "models": _table(
        "name",
        (need(TEXT), "name developer native_precision"),
        (need(DATE), "release_date"),
        (need(COUNT), "layers hidden heads ffn_matrices vocab kv_values_per_token context"),
        (COUNT, "kv_heads head_dim ffn_hidden experts experts_per_token expert_ffn_hidden moe_layers"),
        (COUNT_OR_ZERO, "shared_experts sliding_window global_attention_every q_lora_rank"),
        (COUNT, "kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim"),
        (need(YES_NO), "tied_embeddings"),
        (choice("MHA", "GQA", "MQA", "MLA"), "attention"),
        (need(POSITIVE), "total_params_b active_params_b params_computed_b"),
        (SCORE, "mmlu"),
        (TEXT, "mmlu_note"),
        *_SOURCE,
    ),
    "peer_cost_predictions": _table(
        "peer version mode model gpu n_gpu phase batch",
        (need(TEXT), "peer version mode model gpu w_dtype kv_dtype note"),
        (choice("prefill", "decode"), "phase"),
        (need(COUNT), "n_gpu batch context"),
        (need(POSITIVE), "latency_ms tok_s_total tok_s_per_gpu"),
        (POSITIVE, "weights_gb kv_gb peak_tflops_assumed bw_gb_s_assumed"),
        (TEXT, "bound"),
    ),
    "production_days": _table(
        "row_id",
        (need(TEXT), "row_id service quantity"),
        (need(DATE), "day"),
        (need(POSITIVE), "value"),
        (choice("tokens", "nodes", "tokens/s", "USD/hour", "USD", "USD/Mtok", "%"), "unit"),
        *_SOURCE,
    ),
    "published_trends": _table(
        "author quantity",
        (need(TEXT), "author quantity unit"),
        (NUMBER, "value low high"),
        (TEXT, "period basis"),
        *_SOURCE,
    ),
    "request_lengths": _table(
        "row_id",
        (need(TEXT), "row_id"),
        (choice("conversation", "code"), "trace"),
        (need(COUNT), "prompt_tokens output_tokens"),
        *_SOURCE,
    ),
    "quality_price_epoch": _table(
        "model date",
        (need(TEXT), "model"),
        (need(DATE), "date"),
        (need(POSITIVE), "usd_per_mtok_blended_3to1"),
        (SCORE, "mmlu gpqa_diamond humaneval math500"),
        *_SOURCE,
    ),
    "serving_benchmarks": _table(
        "row_id",
        (need(TEXT), "row_id model accelerator precision engine scenario metric unit kind"),
        (TEXT, "model_key accelerator_key kv_precision parallelism input_len batch_or_concurrency"),
        (need(COUNT), "accelerator_count nodes"),
        (need(POSITIVE), "value"),
        (POSITIVE, "output_len ttft_limit_ms tpot_limit_ms system_value"),
        (TEXT, "system_unit"),
        *_SOURCE,
    ),
    "technique_effects": _table(
        "row_id",
        (need(TEXT), "row_id technique effect_kind unit baseline conditions kind"),
        (choice("hardware", "software", "deployment", "competition", "model"), "driver"),
        (choice("helps", "no gain", "hurts", "mixed"), "direction"),
        (NUMBER, "value low high"),
        *_SOURCE,
    ),
    "token_prices": _table(
        "model provider date",
        (need(TEXT), "model provider"),
        (YES_NO, "open_weights"),
        (need(DATE), "date"),
        (choice("plan", "launch", "price_change", "as_of", "withdrawn", "announced", "index_point"), "date_kind"),
        (need(POSITIVE), "input_usd_per_mtok output_usd_per_mtok"),
        (POSITIVE, "cached_input_usd_per_mtok"),
        (SCORE, "mmlu"),
        (TEXT, "mmlu_source"),
        (POSITIVE, "active_params_b total_params_b"),
        *_SOURCE,
    ),
}


def read(name: str, path=None) -> tuple[Row, ...]:
    """All rows of the table `name`, in the file's order; `path` reads another file by the same schema.

    Raises UnknownNameError for a name without a schema, DataError (file, line, column) for anything in the
    file that is not exactly as the schema says.

    >>> read("accelerators")[0]["name"]
    'K80'
    """
    if not isinstance(name, str) or name not in SCHEMAS:
        raise unknown_name("data table", name, SCHEMAS)
    schema = SCHEMAS[name]
    path = DATA_DIR / f"{name}.csv" if path is None else Path(path)
    rows, first_line = [], {}
    header = None
    for line, cells in _cells(path):
        if header is None:
            header = cells
            _check_header(cells, schema, path.name, line)
            continue
        row = _row(cells, header, schema, path.name, line)
        key = tuple(row[c] for c in schema.key)
        if key in first_line:
            raise DataError(
                f"the row {row.key} stands already in line {first_line[key]}. A row's key must be "
                f"unique: remove one, or tell them apart.",
                file=path.name,
                line=line,
                column=schema.key[0],
            )
        first_line[key] = line
        rows.append(row)
    if header is None:
        raise DataError(
            f"the file is empty. Its first line must name the columns: {', '.join(schema.columns)}.",
            file=path.name,
            line=1,
        )
    return tuple(rows)


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file as text, each with the physical line on which it begins. Blank lines are skipped."""
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise DataError(
            f"cannot read {str(path)!r} ({getattr(e, 'strerror', None) or e}). Check the path.",
            file=path.name,
        ) from None
    # Bytes that are not UTF-8 become lone surrogates here, so that the cell's check can name their place.
    text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise DataError(
                f"the quotes or the cells are broken ({e}). Put a cell that holds a comma, a quote or a "
                f"line break between double quotes, and double the quotes inside it.",
                file=path.name,
                line=line,
            ) from None
        if cells:
            yield line, cells


def _check_header(header: list[str], schema: Schema, file: str, line: int) -> None:
    def fail(problem: str, column: str | None = None):
        raise DataError(problem, file=file, line=line, column=column)

    for cell in header:
        _check_utf8(cell, file, line, None)
    found = ", ".join(repr(c[:40]) for c in header[:60])
    missing = [c for c in schema.columns if c not in header]
    unknown = [c for c in header if c not in schema.columns]
    doubled = [c for c in schema.columns if header.count(c) > 1]
    if len(header) == 1 and re.search(r"[;\t|]", header[0]):
        fail(f"the header is one cell, {header[0][:60]!r}. Separate the cells by commas.")
    if missing:
        typo = "".join(f" {u[:40]!r} is no column of this table." for u in unknown[:3])
        fail(
            f"the column {missing[0]!r} is missing"
            + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
            + f"; found: {found}.{typo} Add it, with empty cells where the fact is not known.",
            missing[0],
        )
    if doubled:
        fail(
            f"the column {doubled[0]!r} stands {header.count(doubled[0])} times in the header. Keep one.",
            doubled[0],
        )
    if unknown:
        near = nearest(unknown[0], schema.columns, 1)
        fail(
            f"there is no column {unknown[0][:40]!r} in this table"
            + (f" (did you mean {near[0]!r}?)" if near else "")
            + f"; allowed: {', '.join(schema.columns)}. Remove or rename it.",
            unknown[0][:40],
        )


def _row(cells: list[str], header: list[str], schema: Schema, file: str, line: int) -> Row:
    if len(cells) != len(header):
        few = len(cells) < len(header)
        column = header[len(cells)] if few else header[-1]
        detail = (
            f"the cell {column!r} is the first that is missing" if few else f"{cells[len(header)][:40]!r} is too many"
        )
        raise DataError(
            f"the row has {len(cells)} cells and the header {len(header)}: {detail}. An empty cell still "
            f"needs its comma; a cell with a comma in it needs double quotes.",
            file=file,
            line=line,
            column=column,
        )
    values = {}
    for column, cell in zip(header, cells, strict=True):
        _check_utf8(cell, file, line, column)
        problem, values[column] = _value(cell, schema.columns[column])
        if problem:
            raise DataError(f"found {cell[:60]!r}; {problem}", file=file, line=line, column=column)
    key = ", ".join(f"{c} {str(values[c])!r}" for c in schema.key if values[c] is not None)
    return Row(values, file, line, key)


def _check_utf8(cell: str, file: str, line: int, column: str | None) -> None:
    bad = re.search("[\udc80-\udcff]", cell)
    if bad:
        shown = cell.encode("utf-8", "surrogateescape")[:60]
        raise DataError(
            f"found {shown}, in which the byte 0x{ord(bad[0]) - 0xDC00:02x} is not UTF-8. Save the file as UTF-8.",
            file=file,
            line=line,
            column=column,
        )


# What a cell must look like. Narrower than float() and int(), which also take "1_000", " 3" and "nan".
_PATTERN = {
    "number": r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?",
    "integer": r"[+-]?[0-9]{1,18}",
    "date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "yes-no": r"yes|no",
}
_WANTED = {
    "number": "write a plain number such as 3.00, without currency sign, thousands separator or word",
    "integer": "write a whole number such as 4096, without separators",
    "yes-no": "write yes or no",
    "date": "write a day of the calendar as YYYY-MM-DD, such as 2024-02-29",
}


def _value(cell: str, column: Column) -> tuple[str, Value]:
    """The problem with a cell ('' if there is none) and its value."""
    if cell == "":
        return ("this column must be filled in every row: write its value." if column.required else "", None)
    if cell != cell.strip():
        return "remove the blanks around the text.", None
    if column.kind == "choice":
        return ("" if cell in column.choices else f"write one of: {', '.join(column.choices)}.", cell)
    if column.kind == "text":
        return "", cell
    wanted = _WANTED[column.kind] + ("." if column.required else "; leave the cell empty if it is not known.")
    if not re.fullmatch(_PATTERN[column.kind], cell):
        return wanted, None
    if column.kind == "yes-no":
        return "", cell == "yes"
    try:
        value = {"number": float, "integer": int, "date": date.fromisoformat}[column.kind](cell)
    except ValueError:
        return wanted, None
    if isinstance(value, float) and not math.isfinite(value):
        return "the number is too large to be read: write it in the column's unit.", None
    return _out_of_range(value, column), value


def _out_of_range(value, column: Column) -> str:
    if column.above is not None and value <= column.above:
        return f"it must be greater than {column.above}: correct the sign or the value."
    if column.low is not None and value < column.low:
        return f"it must be {column.low} or more: correct the sign or the value."
    if column.high is not None and value > column.high:
        return f"it must be {column.high} or less: correct the value or its unit."
    return ""


class Catalogue(Mapping):
    """Things by name, read-only. An unknown name raises an error that tells the nearest ones."""

    def __init__(self, kind: str, things: Mapping):
        self._kind, self._things = kind, dict(things)

    def __getitem__(self, name: str):
        if isinstance(name, str) and name in self._things:
            return self._things[name]
        raise unknown_name(self._kind, name, self._things)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def __repr__(self) -> str:
        return f"{len(self)} {self._kind}s: {', '.join(self)}"

    def full_name(self, name: str) -> str:
        """The full name for `name`, which may be in any case and cut after a word where one name begins so.

        "b200" is "B200 SXM 180GB"; "H100" could be two chips and raises UnknownNameError.
        """
        if not isinstance(name, str) or name in self._things:
            self[name]
            return name
        short = name.strip().casefold()
        same = [n for n in self if n.casefold() == short]
        begin = [n for n in self if re.match(re.escape(short) + r"(?![a-z0-9.])", n.casefold())] if short else []
        found = same or begin
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(
                f"{self._kind} {name!r} could be any of {', '.join(map(repr, found[:8]))}"
                + (f" and {len(found) - 8} more" if found[8:] else "")
                + ". Write the full name."
            )
        raise unknown_name(self._kind, name, self._things)
