"""Opening the checkpoints that people give, and refusing those that cannot be a stage."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cascadebert.errors import ArtifactError, InputError, LabelMismatchError, first_line
from cascadebert.runtimes.quiet import quiet

_NO_LIMIT = 1_000_000


def open_checkpoint(
    checkpoint: str | PathLike[str],
    *,
    attention: str | None = "eager",
    max_length: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence classifier in fp32, for inference, and its tokenizer.

    Args:
        checkpoint: folder or hub name.
        attention: transformers' ``attn_implementation``; the one that can be exported, or None for
            the one that is fastest.
        max_length: that the tokenizer is to know; by default its own.

    Raises:
        ArtifactError: weights or tokenizer are damaged, missing or do not fit together.
    """
    place = os.fspath(checkpoint)
    model, report, tokenizer = _load(
        place,
        "its weights or tokenizer cannot be read",
        "a stage needs safetensors and a tokenizer",
        max_length,
        attn_implementation=attention,
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ArtifactError(
            f"{place}: has no weights for {', '.join(missing[:3])} ({len(missing)} tensors), which "
            "would be random; fine-tune it as a sequence classifier first"
        )
    refuse_other_tokenizer(tokenizer, model, place)
    return model.eval().requires_grad_(False), tokenizer


def open_to_train(
    checkpoint: str | PathLike[str], *, max_length: int | None = None, **settings: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """Load what a training begins with: a pre-trained encoder, or a classifier.

    Args:
        checkpoint: folder or hub name.
        max_length: that the tokenizer is to know; by default its own.
        settings: of transformers' ``from_pretrained``.

    Returns:
        A sequence classifier in fp32, the tokenizer, and the names of the weights that the
        checkpoint has not and that are random, of head and pooler alone.

    Raises:
        ArtifactError: it cannot be opened, or other weights are missing or do not fit.
    """
    place = os.fspath(checkpoint)
    model, report, tokenizer = _load(
        place,
        "not a pre-trained encoder that can be opened",
        "give a folder with config.json, safetensors and a tokenizer, or a hub name",
        max_length,
        **settings,
    )
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    # A new head and pooler are what a pre-trained encoder is expected to need.
    inner = [key for key in fresh if key.startswith(f"{model.base_model_prefix}.")]
    random = sorted(key for key in inner if "pooler" not in key)
    if random:
        raise ArtifactError(
            f"{place}: has no fitting weights for {', '.join(random[:3])} ({len(random)} tensors), "
            "which would be random; give a pre-trained encoder"
        )
    return model, tokenizer, fresh


def _load(
    place: str, cause: str, remedy: str, max_length: int | None = None, **settings: Any
) -> tuple[Any, dict[str, Any], PreTrainedTokenizerBase]:
    """A sequence classifier in fp32, what transformers says of its weights, and its tokenizer.

    Raises:
        ArtifactError: with ``cause`` and ``remedy``, where transformers raises anything.
    """
    length = {} if max_length is None else {"model_max_length": max_length}
    try:
        with quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                place,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **settings,
            )
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **length)
            return model, report, tokenizer
    except Exception as error:
        refuse_own_code(error, place)
        raise ArtifactError(f"{place}: {cause} ({first_line(error)}); {remedy}") from error


def refuse_other_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, place: str
) -> None:
    """Refuse a tokenizer that is none, or not the model's.

    Raises:
        ArtifactError: no fast tokenizer, one without words, or more ids than embeddings.
    """
    if not getattr(tokenizer, "backend_tokenizer", None):
        raise ArtifactError(
            f"{place}: its tokenizer {type(tokenizer).__name__} has no tokenizer.json form; "
            "use a checkpoint with a fast tokenizer"
        )
    vocabulary = tokenizer.get_vocab()
    # Where a checkpoint has no tokenizer, transformers makes one of special tokens alone.
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        raise ArtifactError(
            f"{place}: has no tokenizer that knows a word; "
            "put its tokenizer.json beside the weights"
        )
    embeddings = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    if max(vocabulary.values()) >= embeddings:
        raise ArtifactError(
            f"{place}: its tokenizer has the id {max(vocabulary.values())}, its model only "
            f"{embeddings} embeddings; use the tokenizer that it was trained with"
        )


def open_config(place: str) -> PretrainedConfig:
    """The configuration of a checkpoint that may be a stage.

    Raises:
        ArtifactError: it cannot be opened, is a regression or a multi-label classifier, or its
            labels are not numbered from 0.
    """
    config = read_config(place)
    if len(own_labels(config)) < 2:
        raise ArtifactError(
            f"{place}: has one output (a regression); "
            "a cascade needs classifiers with two labels or more"
        )
    if config.problem_type == "multi_label_classification":
        raise ArtifactError(
            f"{place}: is a multi-label classifier; a cascade needs one label a row"
        )
    return config


def read_config(place: str) -> PretrainedConfig:
    """The configuration of any checkpoint.

    Raises:
        ArtifactError: it cannot be opened.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        refuse_own_code(error, place)
        raise ArtifactError(
            f"{place}: not a checkpoint that transformers can open ({first_line(error)}); "
            "give a folder with config.json, or a hub name"
        ) from error
    return config


def refuse_own_code(error: Exception, place: str) -> None:
    """Refuse a checkpoint that only opens by running Python code of its own.

    Raises:
        ArtifactError: transformers raised ``error`` because it may not run that code.
    """
    if "trust_remote_code" in str(error):
        raise ArtifactError(
            f"{place}: needs Python code of its own (auto_map in its configuration), which is "
            "never run; use a checkpoint of an architecture that transformers knows"
        ) from None


def label_names(
    own: Sequence[str], checkpoint: str | PathLike[str], label_map: Mapping[str, str]
) -> tuple[str, ...]:
    """A checkpoint's own label names, renamed by ``label_map``.

    Raises:
        LabelMismatchError: the map names a label that there is not, or makes two alike.
    """
    unknown = sorted(set(label_map) - set(own))
    if unknown:
        raise LabelMismatchError(
            f"{os.fspath(checkpoint)}: the label map names {unknown}, its labels are {own}; "
            "map the names that it has"
        )
    labels = tuple(label_map.get(label, label) for label in own)
    if len(set(labels)) != len(labels):
        raise LabelMismatchError(
            f"{os.fspath(checkpoint)}: two of its labels have one name in {list(labels)}; "
            "give each label a name of its own"
        )
    return labels


def own_labels(config: PretrainedConfig) -> list[str]:
    """The label names of a configuration in the order of the logits.

    Raises:
        ArtifactError: they are not numbered from 0.
    """
    names = {int(i): str(name) for i, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(len(names))):
        raise ArtifactError(
            f"a checkpoint's id2label has the numbers {sorted(names)}, so which logit a label has "
            "is not known; number them from 0 on in its config.json"
        )
    return [names[i] for i in range(len(names))]


def maximum_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None
) -> int:
    """Tokens that the stage reads: what is wanted, or what model and tokenizer allow.

    Raises:
        InputError: more than the model has positions for, or fewer than 3.
    """
    limit = _position_limit(model)
    length = int(min(limit, tokenizer.model_max_length)) if wanted is None else wanted
    if not 3 <= length <= limit:
        raise InputError(
            f"maximum length {length} is not possible: {model.config.model_type} reads "
            f"3 to {limit} tokens"
        )
    return length


def _position_limit(model: PreTrainedModel) -> int:
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kin count positions from the padding id on.
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - offset)
    return int(getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT)


def model_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Names of the inputs that the model reads and the tokenizer makes."""
    inputs = ["input_ids", "attention_mask"]
    accepted = inspect.signature(model.forward).parameters
    if (
        "token_type_ids" in accepted
        and "token_type_ids" in tokenizer.model_input_names
        and getattr(model.config, "type_vocab_size", 0) > 1
    ):
        inputs.append("token_type_ids")
    return tuple(inputs)
