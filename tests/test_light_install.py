"""Running a saved cascade needs neither torch nor transformers, nor any other extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXTRAS = ("torch", "transformers", "onnx", "onnxscript", "pyarrow", "datasets", "sklearn", "scipy",
          "matplotlib", "accelerate", "safetensors", "openvino")  # fmt: skip

BLOCKED = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_library(saved: Path) -> None:
    code = """
from cascadebert import Cascade, MaxDrop, Rows, evaluate
cascade = Cascade.from_pretrained(sys.argv[1])
out = cascade.predict(["a film", "two films"])
rows = Rows(["a film", "two films"], None, list(out.labels))
cascade.tune(rows, MaxDrop(0.5), confidence=None, cost="flops")
evaluate(cascade, rows)
from cascadebert import *
heavy = [name for name in sys.modules if name.split(".")[0] in ("torch", "transformers")]
assert not heavy, heavy
"""
    done = run(code, str(saved))
    assert done.returncode == 0, done.stderr
    # Also where they are installed they are not imported.
    done = subprocess.run(
        [sys.executable, "-c", "import sys" + code, str(saved)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_command_line(saved: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.csv", tmp_path / "answers.csv"
    source.write_text("text\na film\n")
    code = "from cascadebert.cli.main import main\nsys.argv[0] = 'cascadebert'\nmain()"
    done = run(code, "predict", str(saved), "--input", str(source), "--output", str(target))
    assert done.returncode == 0, done.stderr
    assert len(target.read_text().splitlines()) == 2


def test_what_is_missing_is_named_with_the_extra(saved: Path, tmp_path: Path) -> None:
    source, rows = tmp_path / "rows.parquet", tmp_path / "rows.csv"
    source.touch()
    rows.write_text("text\na film\n")
    main = "from cascadebert.cli.main import main\nsys.argv[0] = 'cascadebert'\nmain()"
    calls = {
        "parquet": ("predict", str(saved), "--input", str(source), "--output", "-"),
        "train": ("build", str(saved / "stages" / "1-distilbert"), "--output", str(tmp_path / "o")),
        "demo": ("demo", "--output", str(tmp_path / "demo")),
        "openvino": (
            *("predict", str(saved), "--input", str(rows), "--output", "-"),
            *("--runtime", "openvino"),
        ),
    }
    done = run("from cascadebert import fine_tune")
    assert "MissingDependencyError" in done.stderr
    assert 'pip install "cascadebert[train]"' in done.stderr
    for extra, arguments in calls.items():
        done = run(main, *arguments)
        assert done.returncode == 2, done.stderr
        assert f'pip install "cascadebert[{extra}]"' in done.stderr
        assert "Traceback" not in done.stderr
