"""Rows in files: four formats that agree, and bad rows that cost only themselves."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadebert import Columns, Rows, read_rows
from cascadebert.errors import InputError
from cascadebert.rows.files import BadRow, GoodRow, RowFile
from cascadebert.rows.writer import RowWriter

RECORDS = [
    {"id": "7", "text": 'a "quoted", odd text', "text_pair": "second", "label": "yes"},
    {"id": "8", "text": "line\nbreak", "text_pair": "naïve 🎬", "label": "no"},
    {"id": "9", "text": "=1+1", "text_pair": "x", "label": "3"},
]
EXPECTED = Rows(*([r[k] for r in RECORDS] for k in ("text", "text_pair", "label")))


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".ndjson", ".parquet"])
def test_formats_agree(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", RECORDS)
    assert read_rows(path, with_labels=True) == EXPECTED
    assert read_rows(path).labels is None


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"never closed\tyes\nplain\tno\n', encoding="utf-8")
    assert read_rows(path, with_labels=True) == Rows(
        ['"never closed', "plain"], None, ["yes", "no"]
    )


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [{"a": "first", "b": "second", "c": "1"}])
    rows = read_rows(path, Columns("a", "b", "c"), with_labels=True)
    assert rows == Rows(["first"], ["second"], ["1"])


def test_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\nhello,yes\r\n")
    assert read_rows(path, with_labels=True) == Rows(["hello"], None, ["yes"])


def test_datasets_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", RECORDS)
    write(tmp_path / "test.jsonl", RECORDS[:1])
    assert read_rows(tmp_path, with_labels=True) == EXPECTED
    assert len(read_rows(f"{tmp_path}:test")) == 1
    with pytest.raises(InputError, match="neither a file nor a data set"):
        read_rows(f"{tmp_path}:nosplit")


def test_class_labels_of_datasets_are_names() -> None:
    datasets = pytest.importorskip("datasets")
    from cascadebert.rows.rows import as_rows

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    assert as_rows(table, with_labels=True).labels == ["pos", "neg"]


BAD_LINES = [
    (b"{not json", "not JSON"),
    (b'["a list"]', "a JSON object is expected"),
    (b'{"label": "yes"}', "'text' is missing"),
    (b'{"text": null, "label": "yes"}', "'text' is null"),
    (b'{"text": 5, "label": "yes"}', "'text' is int 5, not a string"),
    (b'{"text": " \\t\\u3000", "label": "yes"}', "empty or only white space"),
    (b'{"text": "\xff\xfe", "label": "yes"}', "not valid UTF-8"),
    (b'{"text": "\\ud800", "label": "yes"}', "not valid UTF-8"),
    (b'{"text": "a"}', "'label' is missing"),
    (b'{"text": "a", "label": null}', "'label' is None, not a label name"),
    (b'{"text": "a", "label": 1.5}', "'label' is 1.5, not a label name"),
    (b'{"text": "a", "label": "maybe"}', "'label' is 'maybe', not one that the cascade knows"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_bad_line_costs_only_itself(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"text": "fine", "label": "yes"}'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, line, b"", good]))
    first, bad, last = RowFile(str(path), with_labels=True, known_labels=["yes", "no"])
    assert isinstance(first, GoodRow)
    assert isinstance(last, GoodRow)
    assert (first.number, bad.number, last.number) == (0, 1, 2)
    assert isinstance(bad, BadRow)
    assert bad.place == f"{path}, line 2"
    with pytest.raises(InputError, match=reason) as caught:
        read_rows(path, with_labels=True, known_labels=["yes", "no"])
    assert "1 of 3 rows cannot be used" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_csv_records_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text,label\na,yes\nb\n"c" d,yes\n\xff,no\n\ne,no\nf,no,extra\n')
    rows = list(RowFile(str(path), with_labels=True))
    assert [type(row) for row in rows] == [GoodRow, BadRow, BadRow, BadRow, GoodRow, BadRow]
    reasons = [row.reason for row in rows if isinstance(row, BadRow)]
    assert "has 1 fields, the header has 2" in reasons[0]
    assert "not CSV" in reasons[1]
    assert "not valid UTF-8" in reasons[2]
    assert [row.place.split(", ")[1] for row in rows if isinstance(row, BadRow)] == [
        "line 3",
        "line 4",
        "line 5",
        "line 8",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"words,label\na,b\n", r"no column 'text', it has \['words', 'label'\]"),
        ("rows.csv", b"text,text\na,b\n", "names a column twice"),
        ("rows.csv", b"", "has no rows"),
        ("rows.csv", b"text,label\n", "has no rows"),
        ("rows.jsonl", b"\n\n", "has no rows"),
        ("rows.csv", b"text,label\n,x\n ,x\n", "2 of 2 rows cannot be used"),
        ("rows.parquet", b"PAR1 but not really", "not a Parquet file"),
        ("rows.parquet", b"", "not a Parquet file"),
        ("rows.docx", b"?", "cannot tell the format"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(path, with_labels=True)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.csv: no such file"):
        read_rows(tmp_path / "nowhere.csv")


def test_parquet_with_invalid_utf8_and_nulls(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pyarrow.array([b"fine", b"\xff", None, b"good"], pyarrow.binary()).view(
        pyarrow.string()
    )
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "rows.parquet")
    rows = list(RowFile(str(tmp_path / "rows.parquet")))
    assert [type(row) for row in rows] == [GoodRow, BadRow, BadRow, GoodRow]


values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(values, st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=8))
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[tuple[str, float, int]]
) -> None:
    if suffix == ".csv":
        # The csv module turns no line end into another, but NUL is no text to it.
        rows = [(text.replace("\0", "?"), *rest) for text, *rest in rows]
    path = tmp_path_factory.mktemp("written") / f"rows{suffix}"
    records = [{"text": text, "confidence": c, "stage": s} for text, c, s in rows]
    with RowWriter(str(path)) as writer:
        for record in records:
            writer.write([record])
    file = RowFile(str(path), keep=("confidence", "stage"))
    back = [row.record for row in file if isinstance(row, GoodRow)]
    assert [r["text"] for r in back] == [r["text"] for r in records]
    assert [float(r["confidence"]) for r in back] == [r["confidence"] for r in records]
    assert [int(r["stage"]) for r in back] == [r["stage"] for r in records]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("old")

    def fail() -> None:
        with RowWriter(str(path)) as writer:
            writer.write([{"a": 1}])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tsv_writes_quotes_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    with RowWriter(str(path)) as writer:
        writer.write([{"text": 'he said "hi"', "note": None}])
    assert path.read_text() == 'text\tnote\nhe said "hi"\t\n'
    assert read_rows(path).texts == ['he said "hi"']


def test_nested_values_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "meta": {"x": "\\ud800"}}\n')
    (row,) = RowFile(str(path), keep=["meta"])
    assert isinstance(row, BadRow)


def test_given_types_are_not_guessed(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    with RowWriter(str(path), types={"big": pyarrow.uint64()}) as writer:
        writer.write([{"text": "a", "big": 2**63 + 1}])
    (row,) = RowFile(str(path), keep=["big"])
    assert isinstance(row, GoodRow)
    assert row.record["big"] == 2**63 + 1
    with (
        pytest.raises(InputError, match="Parquet needs one type"),
        RowWriter(str(path)) as writer,
    ):
        writer.write([{"big": 2**70}])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_tsv_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="TSV cannot hold"),
        RowWriter(str(tmp_path / "rows.tsv")) as writer,
    ):
        writer.write([{"text": "a\tb"}])
    assert list(tmp_path.iterdir()) == []


def test_rows_must_be_of_one_length() -> None:
    with pytest.raises(InputError, match="2 texts and 1 labels"):
        Rows(["a", "b"], None, ["x"])


def test_fingerprint_sees_every_column_and_the_order() -> None:
    base = Rows(["a", "b"], ["c", "d"], ["x", "y"])
    assert base.fingerprint() == Rows(("a", "b"), ("c", "d"), ("x", "y")).fingerprint()
    others = [
        Rows(["b", "a"], ["d", "c"], ["y", "x"]),
        Rows(["a", "b"], None, ["x", "y"]),
        Rows(["a", "b"], ["c", "d"], None),
        Rows(["ab", ""], ["c", "d"], ["x", "y"]),
    ]
    assert len({base.fingerprint(), *(rows.fingerprint() for rows in others)}) == 5


@pytest.mark.parametrize("name", ["xml", "JSONL", ""])
def test_unknown_format(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "rows.jsonl", RECORDS)
    with pytest.raises(InputError, match="no format is called"):
        list(RowFile(str(path), format=name))
    with pytest.raises(InputError, match="no format is called"):
        RowWriter(str(tmp_path / "out"), name)


def test_rows_with_and_without_a_pair_do_not_mix(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "b", "text_pair": "c"}])
    first, second = RowFile(str(path))
    assert isinstance(first, GoodRow)
    assert isinstance(second, BadRow)
    assert second.reason == "has a second text, unlike the first row"


def test_blank_line_in_a_column_of_texts_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\na\n\nb\n")
    assert [row.number for row in RowFile(str(path)) if isinstance(row, GoodRow)] == [0, 2]


@pytest.mark.parametrize("header", ['"text,label\na,b\n', '"te"xt,label\na,b\n'])
def test_broken_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(header)
    with pytest.raises(InputError, match="header: not CSV"):
        read_rows(path)


def test_class_names_in_parquet_files_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    assert read_rows(tmp_path / "rows.parquet", with_labels=True).labels == ["pos", "neg"]


def test_columns_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    beyond = pyarrow.array([2**62], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"text": ["a"], "when": beyond}), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet").texts == ["a"]


def test_broken_file_in_a_folder_of_datasets(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{broken\n')
    with pytest.raises(InputError, match="neither a file nor a data set"):
        read_rows(tmp_path)


def test_column_without_values_at_first(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    with RowWriter(str(path)) as writer:
        writer.write([{"text": "a", "note": None}])
        writer.write([{"text": "b", "note": "late"}])
    records = [r.record for r in RowFile(str(path), keep=["note"]) if isinstance(r, GoodRow)]
    assert [r["note"] for r in records] == [None, "late"]
    with RowWriter(str(path)) as writer:
        writer.write([{"text": 1}])
        with pytest.raises(InputError, match="Parquet needs one type a column"):
            writer.write([{"text": "b"}])
