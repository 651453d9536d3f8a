"""The manifest: what a reader must know about a run before it reads the ledger and the snapshots."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from hf_prune._core.reading import Count, Positive, Reader
from hf_prune.errors import TrajectoryError
from hf_prune.trajectory.files import MANIFEST, MOST_PROCESSES

SCHEMA_VERSION = 1
RECORD = Reader(TrajectoryError, "copy the whole directory again, or record the run again")
"""Reads the files of a record."""
_MANIFEST_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Parameter:
    """
    One trainable parameter of the recorded model.

    Args:
        name (`str`):
            Its name in `model.named_parameters()`.
        shape (`tuple[int, ...]`):
            Its shape.
        group (`int`):
            The index of its parameter group in the optimizer.
    """

    name: str
    shape: tuple[Count, ...]
    group: Count

    @property
    def size(self) -> int:
        """Number of entries that it takes in the flat vector."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Manifest:
    """
    What is fixed for a whole run. It holds no path, user or host name.

    Args:
        run_id (`str`):
            A random name that all files of the record carry.
        versions (`dict[str, str]`):
            Versions of Python and of the libraries.
        model (`dict[str, Any]`):
            `class`, and where it came from the Hub its id, `name_or_path`, and commit, `revision`.
        optimizer (`dict[str, Any]`):
            `name` (such as `"AdamW"` or `"bitsandbytes.AdamW8bit"`) and `groups`, one dictionary of hyper-parameters
            for each group.
        parameters (`tuple[Parameter, ...]`):
            The recorded parameters, in the order of the flat vector.
        n_rows (`int`, *optional*):
            Rows of the training dataset; `None` for a stream of unknown length.
        dataset_columns (`dict[str, str]`):
            Digests of the columns that reached the model, by [`~hf_prune._core.digest.column_digests`].
        dataset_fingerprint (`str`, *optional*):
            The fingerprint that `datasets` gave to the training dataset.
        id_column (`str`, *optional*):
            The column that the ledger's ids are values of; `None` if they are positions.
        world_size (`int`): Number of processes.
        gradient_accumulation_steps (`int`): Micro-batches of a step.
        max_grad_norm (`float`): The norm that gradients were clipped to; 0 for no clipping.
        precision (`str`): `"no"`, `"bf16"` or `"fp16"`.
        seeds (`dict[str, int | None]`): `seed` and `data_seed`.
        per_device_train_batch_size (`int`): Examples of a micro-batch.
        num_train_epochs (`float`): Epochs as requested; `total_steps` decides.
        padding (`dict[str, Any]`, *optional*):
            `side` and `token` of the tokenizer's padding; `None` if the Trainer was given no tokenizer.
        collator (`str`): Class, or name, of what made batches of rows.
        remove_unused_columns (`bool`): Whether the Trainer removed columns that the model does not take.
        label_names (`tuple[str, ...]`): The names under which the model may be given labels.
        label_smoothing (`float`): The Trainer's `label_smoothing_factor`.
        unrecorded (`tuple[str, ...]`): Parameters that were trained and are not in the record.
        schedule (`dict[str, Any]`): `name`, peak `learning_rate` and `warmup_steps` of the learning rate's schedule.
        total_steps (`int`): Optimizer steps that were planned.
        steps_per_epoch (`int`): Optimizer steps of an epoch.
        window_start (`int`): The step at which the window begins: planned, and recorded once the run is complete.
        snapshot_dtype (`str`): `"float32"` or `"bfloat16"`.
        updates_before_start (`int`): Updates that the optimizer had made before step 0 (a warm start).
        loss (`str`, *optional*):
            `"model"` if every step trained on the loss that the model returned, `"custom"` if one did not, `None`
            before the first step.
        inputs (`tuple[str, ...]`, *optional*): What the model was given in the first step, by name.
        label_column (`str`, *optional*): The dataset's column that these labels came from, where one has their values.
        pairs (`dict[str, Any]`, *optional*):
            Of rows that are pairs of sequences, what their loss is made of: `trainer` (`"DPOTrainer"` or
            `"RewardTrainer"`), `reference` (where the reference's log-probabilities come from: `"columns"` or
            `"adapter"`) and the trainer's settings.
        complete (`bool`): Whether training ended as it should, with everything recorded.
        last_step (`int`, *optional*): Number of optimizer steps made, once the run is complete.
        stopped (`str`, *optional*): Why recording stopped while training went on.
        row_statistics (`bool`): Whether statistics of every visit were recorded.
        window (`float`, *optional*):
            The share of the steps made that the window covers; `None` in records whose snapshots are all of it.
        no_statistics (`str`, *optional*): Why they were given up on the way.
        schema_version (`int`): Version of this format.
    """

    run_id: str
    versions: dict[str, str]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    parameters: tuple[Parameter, ...]
    n_rows: Count | None
    dataset_columns: dict[str, str]
    dataset_fingerprint: str | None
    id_column: str | None
    world_size: Annotated[int, Meta(ge=1, le=MOST_PROCESSES)]
    gradient_accumulation_steps: Positive
    max_grad_norm: Annotated[float, Meta(ge=0)]
    precision: Literal["no", "bf16", "fp16"]
    seeds: dict[str, int | None]
    per_device_train_batch_size: Positive
    num_train_epochs: float
    padding: dict[str, str | int | None] | None
    collator: str
    remove_unused_columns: bool
    label_names: tuple[str, ...]
    label_smoothing: float
    unrecorded: tuple[str, ...]
    schedule: dict[str, Any]
    total_steps: Count
    steps_per_epoch: Positive
    window_start: Count
    snapshot_dtype: Literal["float32", "bfloat16"]
    updates_before_start: Count
    loss: Literal["model", "custom"] | None = None
    inputs: tuple[str, ...] | None = None
    label_column: str | None = None
    pairs: dict[str, Any] | None = None
    complete: bool = False
    last_step: Count | None = None
    stopped: str | None = None
    row_statistics: bool = False
    window: Annotated[int, Meta(ge=1, le=1)] | Annotated[float, Meta(gt=0, le=1)] | None = None
    no_statistics: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        name, groups = self.optimizer.get("name"), self.optimizer.get("groups")
        if not isinstance(name, str) or not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
            raise ValueError("optimizer has to have a name and groups")
        if any(parameter.group >= len(groups) for parameter in self.parameters):
            raise ValueError("a parameter is of a group that the optimizer does not have")
        if len({parameter.name for parameter in self.parameters}) < len(self.parameters):
            raise ValueError("two parameters have the same name")

    @property
    def n_parameters(self) -> int:
        """Length p of the flat parameter vector."""
        return sum(parameter.size for parameter in self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """The inverse of `to_dict`. Raises [`TrajectoryError`] for a newer or damaged manifest."""
        found = values.get("schema_version")
        if type(found) is not int:
            raise TrajectoryError("The manifest names no schema_version: this is not the record of a training run.")
        if found > SCHEMA_VERSION:
            raise TrajectoryError(
                f"The trajectory has schema version {found}, this version of hf_prune reads up to {SCHEMA_VERSION}: "
                "upgrade hf_prune."
            )
        return RECORD.typed(values, cls, "The trajectory's manifest")


def read_manifest(root: Path) -> Manifest:
    """Reads `manifest.json` of a record, or raises [`TrajectoryError`]."""
    content = RECORD.content(root / MANIFEST, _MANIFEST_BYTES)
    if content is None:
        raise TrajectoryError(
            f"There is no trajectory in {root}: pass the directory that TrajectoryCallback wrote to."
        )
    return Manifest.from_dict(RECORD.mapping(content, root / MANIFEST))
