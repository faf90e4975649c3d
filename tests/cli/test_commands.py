"""The command line as a user meets it: answers, errors in one line, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cascadebert import Cascade
from conftest import CORPUS, Make, Run

LABELS = ["good", "bad", "fair"]


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "cascade"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    records = [{"id": i, "text": t, "label": LABELS[i % 3]} for i, t in enumerate(CORPUS * 5)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_main_job(run: Run, make: Make, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small, large = make("small", architecture="distilbert"), make("large", seed=1)
    assert run("build", small, large, "--output", out).code == 0
    # By counting, as seconds of models this small tell nothing.
    faster = ("--speedup", 1.1, "--confidence", 0, "--cost", "flops")
    assert run("tune", out, "--data", rows, *faster).code == 0
    report = tmp_path / "tuned.json"
    assert (
        run(
            "tune", out, "--data", rows, "--max-drop", 0.5, "--confidence", 0, "--json", report
        ).code
        == 0
    )
    tuned = json.loads(report.read_text())
    assert Cascade.from_pretrained(out).thresholds == tuple(tuned["thresholds"])
    assert run("evaluate", out, "--data", rows, "--json", tmp_path / "e.json").code == 0
    result = json.loads((tmp_path / "e.json").read_text())
    assert result.keys() >= {
        "accuracy", "reference_accuracy", "accuracy_drop", "agreement", "exit_fractions",
        "speedup_measured", "speedup_flops", "speedup_layers", "seconds", "reference_seconds",
        "rows", "dis", "ece", "stages",
    }  # fmt: skip
    assert all(s.keys() >= {"accuracy", "dis", "ece", "seconds"} for s in result["stages"])
    assert result["rows"] == 40
    assert sum(result["exit_fractions"]) == pytest.approx(1)
    assert result["reference_accuracy"] == result["stages"][-1]["accuracy"]
    answers = tmp_path / "answers.jsonl"
    assert run("predict", out, "--input", rows, "--output", answers).code == 0
    expected = Cascade.from_pretrained(out).predict([r["text"] for r in lines(rows)])
    assert [r["label"] for r in lines(answers)] == expected.labels.tolist()
    assert [r["stage"] for r in lines(answers)] == expected.stage.tolist()
    assert [r["row"] for r in lines(answers)] == list(range(40))
    card = (out / "README.md").read_text()
    assert "small" in card
    assert "held-out rows" in card


def test_predict_through_pipes(run: Run, folder: Path, rows: Path) -> None:
    done = run("predict", folder, "--input", "-", "--output", "-", stdin=rows.read_bytes())
    assert done.code == 0
    assert [json.loads(line)["row"] for line in done.out.splitlines()] == list(range(40))


def test_predict_formats_columns_and_probabilities(
    run: Run, folder: Path, rows: Path, tmp_path: Path
) -> None:
    target = tmp_path / "answers.csv"
    arguments = ("--keep", "id", "--keep", "label", "--probabilities", "--text-pair-column", "text")
    assert run("predict", folder, "--input", rows, "--output", target, *arguments).code == 0
    header, first, *_ = target.read_text().splitlines()
    assert re.fullmatch(
        r"row,label,stage,confidence,abstained(,probability_\w+){3},id,input_label", header
    )
    assert first.startswith("0,")
    assert run("predict", folder, "--input", target, "--output", tmp_path / "x.parquet",
               "--text-column", "input_label").code == 0  # fmt: skip


def test_skip_writes_the_good_rows_and_the_reasons(run: Run, folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(
        b'{"text": "fine"}\n{"text": null}\n{broken\n{"text": "\xff"}\n{"text": "  "}\n'
        b'{"text": "also fine"}\n{"words": "a"}\n'
    )
    report = tmp_path / "report.json"
    done = run("predict", folder, "--input", source, "--output", target, "--on-error", "skip",
               "--json", report)  # fmt: skip
    assert done.code == 0
    assert [r["row"] for r in lines(target)] == [0, 5]
    bad = lines(tmp_path / "answers.jsonl.errors.jsonl")
    assert [r["row"] for r in bad] == [1, 2, 3, 4, 6]
    assert all(r["reason"] and "line" in r["place"] for r in bad)
    summary = json.loads(report.read_text())
    assert (summary["rows"], summary["bad_rows"]) == (2, 5)
    assert "5 rows could not be used" in done.err


def test_fail_writes_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text('{"text": "fine"}\n{"text": ""}\n')
    done = run("predict", folder, "--input", source, "--output", target)
    assert done.code == 2
    assert "rows.jsonl, line 2: 'text' is empty" in done.error
    assert "--on-error skip" in done.error
    assert not target.exists()


def test_million_characters_are_cut_and_counted(run: Run, folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text(json.dumps({"text": "word " * 200_000}) + '\n{"text": "short"}\n')
    done = run("predict", folder, "--input", source, "--output", target)
    assert done.code == 0
    assert len(lines(target)) == 2
    assert "1 rows were longer than the stage reads" in done.err


BAD_CALLS = [
    (("predict", "{dir}", "--input", "{tmp}/no.csv", "--output", "{tmp}/o.csv"), "no such file"),
    (("predict", "{dir}", "--input", "{tmp}/empty.csv", "--output", "{tmp}/o.csv"), "has no rows"),
    (("predict", "{dir}", "--input", "{rows}", "--output", "{tmp}/o.xyz"), "the format"),
    (("predict", "{dir}", "--input", "{rows}", "--output", "{tmp}/no/o.csv"), "does not exist"),
    (("predict", "{dir}", "--input", "{rows}", "--output", "{tmp}/o.csv", "--keep", "x"), "--keep"),
    (("predict", "{dir}", "--input", "{rows}", "--output", "-", "--on-error", "skip"), "--errors"),
    (("predict", "{dir}", "--input", "{rows}", "--output", "{tmp}/o.csv", "--text-column", "x"),
     "'x' is missing"),
    (("predict", "{tmp}", "--input", "{rows}", "--output", "{tmp}/o.csv"), "not a cascade"),
    (("predict", "{dir}", "--input", "{rows}", "--output", "{tmp}/o.csv", "--runtime", "abacus"),
     "no runtime is called 'abacus'"),
    (("tune", "{dir}", "--data", "{rows}"), "name a target: one or more of --max-drop"),
    (("tune", "{dir}", "--data", "{rows}", "--min-recall", "bad"), "give LABEL=X"),
    (("tune", "{dir}", "--data", "{rows}", "--min-f1", "sad=0.9"), "label 'sad' is not one of"),
    (("tune", "{dir}", "--data", "{rows}", "--speedup", "2", "--score", "mood"), "'mood'"),
    (("tune", "{dir}", "--data", "{rows}", "--speedup", "2", "--group-column", "x"), "'x'"),
    (("check", "{dir}", "--level", "2"), "the level 2.0 is invalid"),
    (("check", "{dir}/stages"), "not a cascade"),
    (("tune", "{dir}", "--data", "{rows}", "--max-drop", "7"), "drop in accuracy"),
    (("tune", "{dir}", "--data", "{rows}", "--min-accuracy", "1"), "is not above 0 and below 1"),
    (("tune", "{dir}", "--data", "{rows}", "--max-drop", "0.1"),
     "40 rows, 8 of them independent, are too few"),
    (("tune", "{dir}", "--data", "{rows}", "--max-drop", "0.1", "--text-pair-column", "x"),
     "--text-pair-column"),
    (("tune", "{dir}", "--data", "{rows}", "--max-drop", "0.1", "--confidence", "1"),
     "a confidence of 1.0 is not between 0 and 1"),
    (("tune", "{dir}", "--data", "{rows}", "--speedup", "2", "--cost", "tears"), "unknown cost"),
    (("tune", "{dir}", "--data", "{rows}", "--speedup", "2", "--label-column", "id"),
     "not one that the cascade knows"),
    (("evaluate", "{dir}", "--data", "{tmp}/nolabel.csv"), "no column 'label'"),
    (("build", "{tmp}/none", "--output", "{tmp}/o"), "not a checkpoint"),
    (("build", "{dir}/stages/1-distilbert", "--output", "{tmp}"), "is not a cascade"),
    (("build", "{dir}/stages/1-distilbert", "--output", "{tmp}/o", "--map-labels", "x"),
     "--map-labels"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[m for _, m in BAD_CALLS])
def test_bad_calls_end_with_one_line_and_code_2(
    run: Run, folder: Path, rows: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "nolabel.csv").write_text("text\na\n")
    before = sorted(path for path in tmp_path.rglob("*"))
    record = (folder / "cascade.json").read_text()
    done = run(*(a.format(dir=folder, rows=rows, tmp=tmp_path) for a in arguments))
    assert done.code == 2, done.err
    assert message in done.error
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert (folder / "cascade.json").read_text() == record


def test_target_out_of_reach_is_a_failed_check(run: Run, folder: Path, rows: Path) -> None:
    done = run("tune", folder, "--data", rows, "--speedup", 1e6, "--confidence", 0)
    assert done.code == 1
    assert "out of reach" in done.error


def test_damaged_files_end_with_code_2(run: Run, folder: Path, rows: Path, tmp_path: Path) -> None:
    path = folder / "stages" / "1-distilbert" / "model.onnx"
    path.write_bytes(path.read_bytes()[:100])
    done = run("predict", folder, "--input", rows, "--output", tmp_path / "o.csv")
    assert done.code == 2
    assert "model.onnx: damaged" in done.error


@pytest.mark.filterwarnings("always::cascadebert.errors.CascadeWarning")
def test_warnings_reach_the_user_as_one_line(run: Run, make: Make, tmp_path: Path) -> None:
    large, small = make("large"), make("small", architecture="distilbert", seed=1)
    done = run("build", large, small, "--output", tmp_path / "out")
    assert done.code == 0
    assert "warning: the stages are not ordered small to large" in done.err


@pytest.mark.parametrize("command", ["build", "tune", "evaluate", "predict", "demo"])
def test_help_has_examples(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0
    assert "Examples" in done.out
    assert f"cascadebert {command}" in done.out


def test_closed_pipe_is_no_error(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "fine"}\n' * 5000)
    command = (
        f"{sys.executable} -m cascadebert predict {folder} --input {source} --output - | head -1"
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_files_named_for_two_things(run: Run, folder: Path, rows: Path, tmp_path: Path) -> None:
    content = rows.read_text()
    answers = tmp_path / "answers.jsonl"
    calls = [
        ("--output", rows),
        ("--output", answers, "--on-error", "skip", "--errors", answers),
        ("--output", answers, "--on-error", "skip", "--errors", rows),
        ("--output", answers, "--json", answers),
    ]
    for arguments in calls:
        done = run("predict", folder, "--input", rows, *arguments)
        assert done.code == 2
        assert "is named for two things" in done.error
        assert rows.read_text() == content
        assert not answers.exists()


@pytest.mark.parametrize(
    "extra", [("--json", "{tmp}/no/x.json"), ("--json", "{tmp}"), ("--errors", "{tmp}/no/e.jsonl")]
)
def test_targets_are_checked_before_anything_is_written(
    run: Run, folder: Path, rows: Path, tmp_path: Path, extra: tuple[str, str]
) -> None:
    option, value = extra
    answers = tmp_path / "answers.jsonl"
    done = run("predict", folder, "--input", rows, "--output", answers, "--on-error", "skip",
               option, value.format(tmp=tmp_path))  # fmt: skip
    assert done.code == 2
    assert "does not exist" in done.error or "is a folder" in done.error
    assert not answers.exists()


def test_folder_of_a_data_set_as_input(run: Run, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a", "id": 3}\n')
    target = tmp_path / "answers.jsonl"
    done = run("predict", folder, "--input", tmp_path / "data", "--output", target, "--keep", "id")
    assert done.code == 0, done.err
    assert lines(target)[0]["id"] == 3


def test_kept_columns_of_one_name(run: Run, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "a", "label": "x", "input_label": "y", "probability_good": 1}\n')
    for arguments in (
        ("--keep", "label", "--keep", "input_label"),
        ("--probabilities", "--keep", "probability_good", "--keep", "input_probability_good"),
    ):
        done = run("predict", folder, "--input", source, "--output", "-", *arguments)
        assert done.code == 2
        assert "two columns the name" in done.error


def test_kept_column_that_is_no_text(run: Run, folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(b'{"text": "a", "id": "\xff"}\n{"text": "b", "id": "ok"}\n')
    arguments = ("--input", source, "--output", target, "--keep", "id")
    assert "'id' is not valid UTF-8" in run("predict", folder, *arguments).error
    assert run("predict", folder, *arguments, "--on-error", "skip").code == 0
    assert [r["id"] for r in lines(target)] == ["ok"]


def test_kept_columns_keep_their_type_from_parquet_to_parquet(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    ids = pyarrow.array([None, 7], pyarrow.int16())
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "id": ids}), tmp_path / "rows.parquet")
    target = tmp_path / "answers.parquet"
    assert run("predict", folder, "--input", tmp_path / "rows.parquet", "--output", target,
               "--keep", "id").code == 0  # fmt: skip
    assert parquet.read_table(target)["id"].type == pyarrow.int16()
    assert parquet.read_table(target)["id"].to_pylist() == [None, 7]


def test_class_names_are_kept_from_parquet_to_parquet(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    target = tmp_path / "answers.parquet"
    done = run("predict", folder, "--input", tmp_path / "rows.parquet", "--output", target,
               "--keep", "label")  # fmt: skip
    assert done.code == 0, done.err
    assert parquet.read_table(target)["input_label"].to_pylist() == ["pos", "neg"]


def test_repeated_label_maps_add_up(run: Run, make: Make, tmp_path: Path) -> None:
    checkpoint = make("a")
    done = run("build", checkpoint, "--output", tmp_path / "out",
               "--map-labels", "1:bad=NEG", "--map-labels", "1:good=POS")  # fmt: skip
    assert done.code == 0
    assert Cascade.from_pretrained(tmp_path / "out").labels == ("NEG", "fair", "POS")


def test_odd_names_are_printed_as_they_are(run: Run, make: Make, tmp_path: Path) -> None:
    target = tmp_path / "out[v1][/x]"
    done = run("build", make("a"), "--output", tmp_path / "out[v1]")
    assert done.code == 0
    assert f"wrote {tmp_path}/out[v1]" in done.out
    done = run("predict", target, "--input", "-", "--output", "-", stdin=b'{"text": "a"}')
    assert done.code == 2
    assert f"{target}: no such folder" in done.error


def test_pipes_are_read_and_written(folder: Path, rows: Path) -> None:
    command = (
        f"{sys.executable} -m cascadebert predict {folder} --input <(cat {rows}) "
        "--input-format jsonl --output /dev/stdout --output-format jsonl | wc -l"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "40", done.stderr


def test_tune_promises_or_says_why_not(run: Run, folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "unlabelled.jsonl"
    records = [{"text": f"{text} {i}"} for i, text in enumerate(CORPUS * 12)]
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    labelled = tmp_path / "labelled.jsonl"
    named = [record | {"label": LABELS[i % 3]} for i, record in enumerate(records)]
    labelled.write_text("".join(json.dumps(record) + "\n" for record in named))
    report = tmp_path / "report.json"
    settings = ("--cost", "flops", "--json", report)
    done = run(
        "tune", folder, "--data", rows, *settings, "--min-agreement", 0.2, "--confidence", 0.8
    )
    certificate = json.loads(report.read_text())["certificate"]
    assert done.code == (1 if certificate["verdict"] == "not certified" else 0)
    assert certificate["confidence"] == 0.8
    strict = run("tune", folder, "--data", labelled, *settings, "--min-accuracy", 0.99)
    assert strict.code == 1
    assert "Not certified" in strict.out
    assert json.loads(report.read_text())["certificate"]["verdict"] == "not certified"
    assert run("check", folder).code == 1
