"""The benchmark: each contender in its own process, on the same rows, in turn."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from cascadebert import Cascade, MaxDrop, Rows
from cascadebert.bench.bench import STEPS_BESIDE_ROUNDS, bench, rows_that_fit
from cascadebert.bench.command import Command
from cascadebert.bench.contenders import contenders
from cascadebert.bench.picture import plot_bench, refuse_picture
from cascadebert.bench.process import Run, Worker
from cascadebert.bench.result import BenchResult, Measured, figures, oracle_of
from cascadebert.bench.worker import load
from cascadebert.errors import CascadeError, CascadeWarning, InputError
from cascadebert.evaluation.oracle import oracle
from cascadebert.rows.rows import evenly
from conftest import CORPUS, with_record
from conftest import Run as Cli

TEXTS = [f"{line} {i}" for i in range(12) for line in CORPUS]
PAIRS = [TEXTS[-i - 1] for i in range(len(TEXTS))]
LABELS = ["good", "bad", "fair"]
ROWS = Rows(TEXTS, None, [LABELS[i % 3] for i in range(len(TEXTS))])
HEAVY = ("OpenVINO", "torch", "pipeline")
SMALL = ("distilbert", "roberta")

ANSWER = """
import json, sys, time
source = open(sys.argv[1]) if len(sys.argv) > 1 else sys.stdin
target = open(sys.argv[2], "w") if len(sys.argv) > 2 else sys.stdout
for line in source:
    row = json.loads(line)
    time.sleep({sleep})
    label = "good" if len(row["text"] + row.get("text_pair", "")) % 2 else "bad"
    print(json.dumps(dict(label=label)), file=target)
"""


def own_label(row: int) -> str:
    """What the script of ANSWER says."""
    return "good" if len(TEXTS[row]) % 2 else "bad"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A shell command that runs a script."""
    folder = tmp_path_factory.mktemp("scripts")

    def make(name: str, code: str, arguments: str = "") -> str:
        (folder / name).write_text(code)
        return f"{sys.executable} {folder / name} {arguments}".strip()

    return make


@pytest.fixture(scope="module")
def commands(scripts: Callable[..., str]) -> dict[str, str]:
    """By pipes, by files, and one that takes its time."""
    fast = ANSWER.format(sleep=0)
    return {
        "pipes": scripts("pipes.py", fast),
        "files": scripts("files.py", fast, "{input} {output}"),
        "slow": scripts("slow.py", ANSWER.format(sleep=0.02)),
    }


@pytest.fixture(scope="module")
def result(saved: Path, commands: dict[str, str]) -> BenchResult:
    steps: list[int] = []
    cascade = Cascade.from_pretrained(saved)
    skip = ["torch", "pipeline"]
    found = bench(
        cascade,
        ROWS,
        against=list(commands.values()),
        rounds=2,
        seconds=0.8,
        skip=skip,
        progress=steps.append,
    )
    entered = contenders(cascade, list(commands.values()), skip)
    assert [one.name for one in found.contenders] == [one.name for one in entered]
    assert sum(steps) == len(entered) * (2 + STEPS_BESIDE_ROUNDS)
    return found


def test_labels_of_a_worker_are_those_of_the_cascade(saved: Path, tmp_path: Path) -> None:
    cascade = Cascade.from_pretrained(saved)
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"texts": TEXTS, "pairs": PAIRS}))
    recipes = {one.name: one.recipe for one in contenders(cascade) if one.kind != "pipeline"}
    some = evenly(len(TEXTS), 20)
    rows = Rows(TEXTS, PAIRS).take(some.tolist())
    for name, expected in (
        ("cascade", cascade),
        ("deberta-v2 alone", cascade.alone(3)),
        ("roberta alone", cascade.alone(2)),
    ):
        with Worker(name) as worker:
            worker.load(folder=str(saved), rows=str(file), **recipes[name])
            assert worker.run(20).labels == expected.predict(rows).labels.tolist()
            assert worker.startup_seconds
            assert worker.startup_seconds > 0
            # Nothing of this process, which has torch and all checkpoints, is counted there.
            here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert (
                10 < (worker.peak_memory_mb or 0) < here * (1 if sys.platform == "darwin" else 1e-3)
            )
            assert all(0 < seconds < 60 for seconds in worker.latency(0.01))
        assert worker.process.returncode is not None


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_the_pipeline_is_fed_as_the_stage_is(saved: Path, pairs: list[str] | None) -> None:
    rows = Rows(TEXTS, pairs).slice(0, 20)
    expected = Cascade.from_pretrained(saved).alone(2).predict(rows).labels.tolist()
    for size in (1, 32):
        assert load(saved, {"number": 2, "batch_size": size}).answer(rows).labels == expected


def test_the_json_is_whole_and_adds_up(result: BenchResult, cascade: Cascade) -> None:
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values.keys() >= {
        "rows", "rows_fingerprint", "machine", "versions", "reference", "contenders", "oracle",
        "predicted_seconds", "measured_seconds", "predicted_ratio",
    }  # fmt: skip
    assert values["rows"] == len(ROWS)
    assert values["rows_fingerprint"] == ROWS.fingerprint()
    assert {"cascadebert", "onnxruntime", "openvino", "torch"} <= values["versions"].keys()
    assert values["reference"] == "deberta-v2 alone"
    for one in values["contenders"]:
        assert one.keys() >= {
            "name", "rows_per_second", "rows_per_second_range", "rows_per_second_per_core",
            "latency_ms", "peak_memory_mb", "startup_seconds", "accuracy", "rows", "ratio",
            "ratio_range", "accuracy_retained", "overhead",
        }  # fmt: skip
        low, high = one["rows_per_second_range"]
        assert low <= one["rows_per_second"] <= high
        low, high = one["ratio_range"]
        assert low <= one["ratio"] <= high
        if one["kind"] == "command":
            assert one["latency_ms"] is one["peak_memory_mb"] is one["startup_seconds"] is None
        else:
            assert one["latency_ms"].keys() >= {"p50", "p95", "p99"}
            assert one["peak_memory_mb"] > 10
            assert one["startup_seconds"] > 0
            assert 0 < one["overhead"] < 1
    right = cascade.predict(TEXTS).labels == np.array(ROWS.labels)
    own = result.contender("cascade")
    assert own.accuracy == right[evenly(len(ROWS), own.rows)].mean()
    reference = result.contender(result.reference)
    assert reference.ratio_range == (1, 1)
    assert reference.accuracy_retained == 1
    # The cascade has no speeds yet.
    assert values["predicted_seconds"] is None
    assert values["measured_seconds"] > 0


def test_commands_are_heard_by_pipes_and_by_files(
    result: BenchResult, commands: dict[str, str]
) -> None:
    for kind in ("pipes", "files"):
        one = result.contender(commands[kind])
        assert (one.kind, one.rows) == ("command", len(ROWS))
        right = [own_label(i) == label for i, label in enumerate(ROWS.labels or ())]
        assert one.accuracy == np.mean(right)


def test_a_slow_contender_gets_fewer_rows(result: BenchResult, commands: dict[str, str]) -> None:
    one = result.contender(commands["slow"])
    assert 32 <= one.rows < len(ROWS)
    chosen = evenly(len(ROWS), one.rows).tolist()
    labels = ROWS.labels or ()
    assert one.accuracy == np.mean([own_label(i) == labels[i] for i in chosen])
    assert one.rows_per_second < 60


def test_as_many_rows_as_fit() -> None:
    asked: list[int] = []

    def taking(start: float, row: float) -> Callable[[int], Run]:
        return lambda count: asked.append(count) or Run(start + count * row, [])

    assert rows_that_fit(taking(0, 1e-4), 10_000, 10) == 10_000
    assert rows_that_fit(taking(0, 0.01), 10_000, 10) == pytest.approx(1000, abs=1)
    # A start is paid once, however many rows there are.
    assert rows_that_fit(taking(5, 0.01), 10_000, 10) == pytest.approx(500, abs=1)
    assert rows_that_fit(taking(50, 0.01), 10_000, 10) == 32
    assert rows_that_fit(taking(0, 100), 10_000, 10) == 32
    asked.clear()
    assert rows_that_fit(taking(0, 100), 5, 10) == 5
    assert max(asked) == 5


def test_fewer_rows_are_among_more_and_keep_clear_of_periods() -> None:
    for rows in (7, 96, 1000):
        for count in (1, 5, 7):
            assert set(evenly(rows, count)) <= set(evenly(rows, count + 3))
    chosen = evenly(3000, 300)
    assert len(set(chosen)) == 300
    assert np.diff(chosen).max() < 30
    for period in (2, 3, 4, 10):
        counts = np.bincount(chosen % period, minlength=period)
        assert counts.min() > 0.8 * 300 / period
    assert evenly(5, 100).tolist() == [0, 1, 2, 3, 4]


FAILURES = [
    ("import sys; print('half way', file=sys.stderr); sys.exit('no model'); 3",
     r"ended with code 1 \(last line of its standard error: no model\)"),
    ("import os; os.kill(os.getpid(), 9)", r"ended with code 137|signal SIGKILL"),
    ("print('{\"label\": \"good\"}')", r"wrote 1 lines for 8 rows \(its standard error is empty\)"),
    ("pass", "wrote 0 lines for 8 rows"),
    ("for i in range(8): print('good')", "wrote 'good' as line 1, no JSON object with a label"),
    ("for i in range(8): print('{\"label\": null}' if i == 2 else '{\"label\": \"good\"}')",
     "as line 3, no JSON object with a label"),
    ("for i in range(8): print('{\"label\": \"LABEL_1\"}')",
     r"answers 'LABEL_1', which are none of the labels of the rows \('bad', 'fair'"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "message"), FAILURES)
def test_commands_that_fail_are_named(
    scripts: Callable[..., str], tmp_path: Path, code: str, message: str
) -> None:
    command = scripts("broken.py", code)
    with pytest.raises(InputError, match=message) as raised:
        Command(command, ROWS, tmp_path).check(["bad", "fair", "good"])
    assert command in str(raised.value)


def test_a_failing_command_is_found_before_anything_is_loaded(cascade: Cascade) -> None:
    steps: list[int] = []
    with pytest.raises(InputError, match="the command 'false' ended with code 1"):
        bench(cascade, ROWS, against=["false"], progress=steps.append)
    with pytest.raises(InputError, match=r"wrote no file in place of \{output\}"):
        bench(cascade, ROWS, against=["true {output}"], progress=steps.append)
    assert not steps
    assert not psutil.Process().children()


def test_pairs_reach_a_command(tmp_path: Path) -> None:
    rows = Rows(TEXTS, PAIRS)
    kept = tmp_path / "kept.jsonl"
    answer = f'tee {kept} | sed \'s/.*/{{"label": "good"}}/\''
    assert Command(answer, rows, tmp_path).run(len(rows)).labels == ["good"] * len(rows)
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    assert records == [
        {"text": text, "text_pair": pair} for text, pair in zip(TEXTS, PAIRS, strict=True)
    ]


def test_a_worker_that_is_killed_is_told_of_and_none_is_left(cascade: Cascade) -> None:
    steps: list[int] = []

    def kill_one(step: int) -> None:
        steps.append(step)
        if len(steps) == 3:
            os.kill(psutil.Process().children()[0].pid, signal.SIGKILL)

    with pytest.raises(CascadeError, match=r"timed 'cascade' was ended by the signal SIGKILL"):
        bench(cascade, ROWS, skip=[*HEAVY, *SMALL], seconds=0.5, progress=kill_one)
    # Both are ready, one round is done, and half of the second, which goes the other way round.
    assert len(steps) == 5
    assert not psutil.Process().children()


def test_nobody_is_left_when_it_is_broken_off(cascade: Cascade) -> None:
    def break_off(_: int) -> None:
        assert psutil.Process().children()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(cascade, ROWS, skip=[*HEAVY, *SMALL], seconds=0.5, progress=break_off)
    assert not psutil.Process().children()


def test_no_part_of_a_command_is_left_when_it_is_broken_off(tmp_path: Path) -> None:
    # A test run in the background is not interrupted otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        Command("sleep 61.23 | cat; true", ROWS, tmp_path).run(8)
    timer.join()
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 10
    while any("61.23" in (one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_worker_refuses_and_how_it_dies(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"texts": TEXTS, "pairs": None}))
    with (
        Worker("lost") as worker,
        pytest.raises(CascadeError, match=r"^lost: .*no such folder; check the path"),
    ):
        worker.load(folder=str(tmp_path / "no"), rows=str(file), stages=[1], runtimes=["onnx"])
    with (
        Worker("odd") as worker,
        pytest.raises(CascadeError, match=r"'odd' ended with code 1 \(last line .*IndexError"),
    ):
        worker.load(folder=str(saved), rows=str(file), stages=[9], runtimes=["onnx"])


def test_warnings_of_a_worker_reach_the_user(cascade: Cascade) -> None:
    untuned = Cascade.from_pretrained(cascade.stages[0].folder.parents[1])
    untuned = with_record(untuned, thresholds=None)
    with pytest.warns(CascadeWarning, match="has no thresholds yet"):
        found = bench(untuned, ROWS.slice(0, 8), rounds=1, skip=[*HEAVY, *SMALL], seconds=0.5)
    # It was not as it lay on disk, so a copy has run; without all stages there is no oracle.
    assert found.contender("cascade").accuracy == found.contender(found.reference).accuracy
    assert found.oracle is None


def test_the_oracle_by_hand() -> None:
    right = np.array(
        [
            [True, True, False, False, False],
            [False, True, True, False, False],
            [True, False, True, True, False],
        ]
    )
    found = oracle(right, np.array([1.0, 3.0, 10.0]))
    assert found.rows == 5
    assert found.accuracy == 4 / 5
    assert found.exit_fractions == (3 / 5, 1 / 5, 1 / 5)
    assert found.speedup == pytest.approx(10 / ((1 + 1 + 1 + 4 + 14) / 5))
    # Rows per second of 20 and 2, on the rows that both were run on: all of the slower one.
    few = evenly(100, 40)
    fast = Measured("fast", "stage", "onnx", [5.0, 5.0, 4.0], np.arange(100) % 2 == 0)
    slow = Measured("slow", "stage", "onnx", [20.0, 20.0, 30.0], few % 4 < 3)
    found = oracle_of([fast, slow], 100)
    assert found.rows == 40
    assert found.accuracy == np.mean((few % 2 == 0) | (few % 4 < 3))
    through = np.mean((few % 2 == 1) & (few % 4 < 3))
    assert found.exit_fractions == pytest.approx((1 - through, through))
    assert found.speedup == pytest.approx(0.5 / (0.05 + through * 0.5))


def test_figures_by_hand() -> None:
    reference = Measured("last", "stage", "onnx", [10.0, 20.0, 10.0], np.arange(100) < 50)
    right = evenly(100, 40) % 2 == 0
    one = Measured(
        "x", "stage", "onnx", [2.0, 1.0, 4.0], right, [1.0, 0.5, 3.0], [0.001, 0.002, 0.003]
    )
    found = figures(one, reference, 100)
    assert found.rows == 40
    assert found.rows_per_second == 20
    assert found.rows_per_second_range == (10, 40)
    # 20 to 10, 40 to 5 and 10 to 10 rows per second.
    assert found.ratio == 2
    assert found.ratio_range == (1, 8)
    assert found.accuracy == right.mean()
    assert found.accuracy_retained == pytest.approx(right.mean() / np.mean(evenly(100, 40) < 50))
    assert found.overhead == 0.5
    assert found.latency_ms
    assert (found.latency_ms.p50, found.latency_ms.rows) == (2, 3)
    none_right = Measured("last", "stage", "onnx", [1.0] * 3, np.zeros(100, dtype=np.bool_))
    assert figures(one, none_right, 100).accuracy_retained is None


def test_what_is_timed_and_what_is_left_out(cascade: Cascade) -> None:
    names = [one.name for one in contenders(cascade, ["cat", "cat"])]
    # Its last stage runs on ONNX Runtime as it is.
    assert names == [
        "cascade",
        "deberta-v2 alone",
        "deberta-v2 alone, OpenVINO bf16",
        "deberta-v2 alone, torch bf16",
        "deberta-v2, transformers pipeline, batch 1",
        "deberta-v2, transformers pipeline, batch 32",
        "roberta alone",
        "distilbert alone",
        "cat",
    ]
    with pytest.raises(InputError, match="which all ratios are against"):
        contenders(cascade, skip=["deberta"])
    with pytest.raises(InputError, match="no contender has 'x86' in its name: 'cascade'"):
        contenders(cascade, skip=["x86"])
    with pytest.raises(InputError, match="give 1 round or more"):
        bench(cascade, ROWS, rounds=0)
    with pytest.raises(InputError, match="of more than 0 s"):
        bench(cascade, ROWS, seconds=0)
    with pytest.raises(InputError, match="labelled rows are needed"):
        bench(cascade, TEXTS)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_picture(result: BenchResult, tmp_path: Path, suffix: str) -> None:
    path = plot_bench(result, tmp_path / f"bench{suffix}")
    content = path.read_bytes()
    if suffix == ".png":
        assert content.startswith(b"\x89PNG")
        return
    text = content.decode()
    for name in ("cascade: ", "roberta alone: ", "oracle: ", "rows per second", "accuracy, %"):
        assert name in text
    with pytest.raises(InputError, match=r"ends in \.svg or \.png"):
        refuse_picture(Path("bench.pdf"))


def test_the_command_line(
    run: Cli, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less precise than usual, and ten times as fast.
    monkeypatch.setattr("cascadebert.stages.speed._SECONDS_A_RUN", 0.02)
    folder, report = tmp_path / "cascade", tmp_path / "bench.json"
    shutil.copytree(saved, folder)
    tuned = Cascade.from_pretrained(folder)
    tuned.tune(Rows([f"{t} x" for t in TEXTS], None, ROWS.labels), MaxDrop(0.3), cost="flops")
    tuned.save_pretrained(folder)
    rows = tmp_path / "rows.jsonl"
    records = [{"text": t, "label": LABELS[i % 3]} for i, t in enumerate(TEXTS)]
    rows.write_text("".join(json.dumps(record) + "\n" for record in records))
    skip = [word for text in (*HEAVY, *SMALL) for word in ("--skip", text)]
    done = run("bench", folder, "--data", rows, "--rows", 64, "--rounds", 1, "--seconds", 0.5,
               "--calibrate", "--json", report, "--picture", tmp_path / "b.svg", *skip)  # fmt: skip
    assert done.code == 0, done.err
    for words in ("cascade", "ratio", "accuracy", "peak MB", "by the speed of its stages"):
        assert words in done.out
    values = json.loads(report.read_text())
    assert values["rows"] == 64
    assert values["predicted_ratio"] == values["predicted_seconds"] / values["measured_seconds"]
    assert values["predicted_on"] == values["machine"]
    assert (tmp_path / "b.svg").stat().st_size
    again = Cascade.from_pretrained(folder)
    assert again.routing == tuned.routing
    assert again.certificate == tuned.certificate
    assert again.certificate
    assert again.certificate.artefact_fingerprint == again.fingerprint
    assert run("check", folder).code == (again.certificate.verdict == "not certified")
    # The prediction by the speeds that were saved, on the rows that were drawn.
    drawn = evenly(len(TEXTS), 64)
    some = [TEXTS[i] for i in drawn[evenly(64, values["contenders"][0]["rows"])]]
    passed = again.predict(some).passed
    predicted = 0.0
    for k, stage in enumerate(again.stages):
        assert stage.speed
        lengths = stage.tokenize(Rows(some)).lengths
        predicted += float(stage.speed.row_seconds(lengths)[passed[:, k]].sum())
    assert values["predicted_seconds"] == pytest.approx(predicted)


BAD_CALLS = [
    (("--data", "{tmp}/nolabel.csv"), "no column 'label'"),
    (("--data", "{tmp}/rows.csv", "--picture", "{tmp}/b.pdf"), "ends in .svg or .png"),
    (("--data", "{tmp}/rows.csv", "--json", "{tmp}/no/x.json"), "does not exist"),
    (("--data", "{tmp}/rows.csv", "--skip", "deberta"), "which all ratios are against"),
    (("--data", "{tmp}/rows.csv", "--against", "exit 3"), "the command 'exit 3' ended with code 3"),
    (("--data", "{tmp}/rows.csv", "--calibrate", "--against", "exit 4"), "ended with code 4"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[m for _, m in BAD_CALLS])
def test_bad_calls(
    run: Cli, saved: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "nolabel.csv").write_text("text\na\n")
    (tmp_path / "rows.csv").write_text("text,label\na,bad\n")
    before = (saved / "cascade.json").read_bytes()
    done = run("bench", saved, *(a.format(tmp=tmp_path) for a in arguments))
    assert done.code == 2, done.err
    assert message in done.error
    assert (saved / "cascade.json").read_bytes() == before


def test_help_has_examples(run: Cli) -> None:
    done = run("bench", "--help")
    assert done.code == 0
    assert "cascadebert bench my-cascade --data test.jsonl" in done.out


def test_what_libraries_print_does_not_get_among_the_answers(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"texts": TEXTS, "pairs": None}))
    request = {"folder": str(saved), "rows": str(tmp_path / "rows.json"), "stages": [1],
               "runtimes": ["onnx"]}  # fmt: skip
    code = (
        "import os, subprocess, cascadebert.bench.worker as contender\n"
        "load = contender.load\n"
        "def noisy(*given):\n"
        "    print('from Python'); os.system('echo from a child'); return load(*given)\n"
        "contender.load = noisy\n"
        "contender.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["seconds"] > 0 for line in done.stdout.splitlines()] == [True]
    assert "from Python" in done.stderr
    assert "from a child" in done.stderr
