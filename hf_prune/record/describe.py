"""What the manifest says of a run that begins: its dataset, model, tokenizer, arguments and libraries."""

from __future__ import annotations

import math
import os
import platform
import re
import secrets
from importlib.metadata import version
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers.utils import find_labels

from hf_prune._core import compat, sharding
from hf_prune._core.digest import column_digests
from hf_prune.model.rows import LABELS
from hf_prune.trajectory.manifest import Manifest

_LIBRARIES = ("accelerate", "datasets", "torch", "transformers")


def describe_dataset(dataset: Any, main: bool) -> tuple[int | None, dict[str, str], str | None]:
    """Row count, column digests and fingerprint. Only the main process needs the digests, which read all rows.

    They are not remembered: scoring compares the rows as they are after training.
    """
    rows = None if isinstance(dataset, torch.utils.data.IterableDataset) else len(dataset)
    if isinstance(dataset, torch.utils.data.Subset) and isinstance(dataset.dataset, datasets.Dataset):
        dataset = dataset.dataset.select([int(row) for row in dataset.indices])
    if not isinstance(dataset, datasets.Dataset):
        return rows, {}, None
    return rows, column_digests(dataset, fresh=True) if main else {}, compat.fingerprint(dataset)


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    """Class, and the Hub id that it came from; never a local path."""
    described: dict[str, Any] = {"class": sharding.class_of(model).__name__}
    name = compat.hub_name(model)
    if name is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not os.path.exists(name):
        described["name_or_path"] = name
        commit = compat.hub_commit(model)
        if commit is not None:
            described["revision"] = commit
    return described


def describe_padding(processing_class: Any) -> dict[str, Any] | None:
    """How the Trainer's own collator pads, where it was given a tokenizer."""
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        return None
    return {"side": processing_class.padding_side, "token": processing_class.pad_token_id}


def describe_collator(dataloader: Any) -> str:
    """What makes batches of rows: a function's name, or an object's class."""
    collator = compat.collator(dataloader)
    return getattr(collator, "__name__", type(collator).__name__)


def label_names(args: TrainingArguments, model: torch.nn.Module) -> tuple[str, ...]:
    """The names under which the model may be given labels, as the Trainer finds them."""
    base = compat.base_model(model)
    return tuple(args.label_names or find_labels(type(base)) or ("labels",))


def find_label_column(dataset: Any, rows: list[int] | None, labels: torch.Tensor | None) -> str | None:
    """The column of single values that are, at these rows, the labels that the model was given."""
    if not isinstance(dataset, datasets.Dataset) or rows is None or labels is None or labels.numel() != len(rows):
        return None
    plain, found = dataset.with_format(None), labels.reshape(-1).tolist()
    single = [name for name, kind in plain.features.items() if isinstance(kind, datasets.Value | datasets.ClassLabel)]
    wanted = sorted(single, key=lambda name: name not in LABELS)
    values = plain.select_columns(wanted)[rows] if wanted else {}
    return next((name for name in wanted if values[name] == found), None)


def batch_size(args: TrainingArguments, state: TrainerState) -> int:
    """Examples of a micro-batch of one process, as the Trainer really makes them."""
    size = (state.train_batch_size or args.train_batch_size) // max(1, args.n_gpu)  # auto_find_batch_size changes it
    split = getattr(args.accelerator_config, "split_batches", False)
    return size // args.world_size if split else size


def new_manifest(args: TrainingArguments, **known: Any) -> Manifest:
    """The manifest of a run that begins now."""
    return Manifest(
        run_id=secrets.token_hex(8),
        versions=_library_versions(),
        world_size=args.world_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        max_grad_norm=_clipped_to(args.max_grad_norm),
        precision="bf16" if args.bf16 else "fp16" if args.fp16 else "no",
        seeds={"seed": args.seed, "data_seed": args.data_seed},
        num_train_epochs=float(args.num_train_epochs),
        remove_unused_columns=bool(args.remove_unused_columns),
        label_smoothing=float(args.label_smoothing_factor or 0.0),
        schedule={
            "name": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            "learning_rate": args.learning_rate,
            "warmup_steps": args.warmup_steps,
        },
        **known,
    )


def _clipped_to(norm: float | None) -> float:
    """0 stands for no clipping, as infinity does, which JSON does not have."""
    return float(norm) if norm and math.isfinite(norm) else 0.0


def _library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a training step does."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
