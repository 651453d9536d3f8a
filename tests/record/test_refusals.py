"""What cannot be recorded rightly is refused before the first step, and the message names the way out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback

from hf_prune import RecordingError, TrajectoryError, add_influence
from hf_prune.record import TrajectoryCallback, with_example_ids
from hf_prune.record.support import check_processes, inner_optimizer
from hf_prune.trajectory import Trajectory
from tests.record.test_ledger_truth import recorded
from tests.record.truth import CASES, Telling, pad, run, telling_rows
from tests.toys import Mlp, arguments, train, vectors


def test_a_stream_without_ids_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", max_steps=5)
    stream = telling_rows(20).to_iterable_dataset()
    callback = TrajectoryCallback(tmp_path / "t")
    with pytest.raises(RecordingError, match=r"with_example_ids.*remove_unused_columns=False"):
        Trainer(Telling(20), args, train_dataset=stream, data_collator=pad, callbacks=[callback]).train()


def test_a_batch_that_lost_its_ids_is_refused_in_the_first_step(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", max_steps=5, remove_unused_columns=False)
    stream = telling_rows(20).to_iterable_dataset()
    callback = TrajectoryCallback(tmp_path / "t")
    with pytest.raises(RecordingError, match="carries no id column"):
        Trainer(Telling(20), args, train_dataset=stream, data_collator=pad, callbacks=[callback]).train()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([f"imdb-{i}" for i in range(20)], "holds string"),
        ([i + i / 100 for i in range(20)], "has missing values or fractions"),
        ([float("nan"), *map(float, range(1, 20))], "has missing values or fractions"),
        ([None, *range(1, 20)], "has missing values or fractions"),
        ([i // 2 for i in range(20)], "holds a value more than once"),
        (np.arange(2**63, 2**63 + 20, dtype=np.uint64), "has numbers from 2\\*\\*63 on"),
    ],
)
def test_ids_that_are_no_whole_numbers_of_their_own_are_refused(ids: Any, words: str, tmp_path: Path) -> None:
    rows = vectors(20).add_column("uid", ids)
    callback = TrajectoryCallback(tmp_path / "t", id_column="uid")
    with pytest.raises(RecordingError, match=f"The id column 'uid' {words}.*with_example_ids"):
        train(Mlp(), rows, tmp_path / "out", [callback], max_steps=2, remove_unused_columns=False)


def test_a_subset_is_known_by_its_contents(tmp_path: Path) -> None:
    rows, model = vectors(48), Mlp()
    subset = torch.utils.data.Subset(rows, list(range(47, 7, -1)))
    train(model, subset, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    scoring = {"model": model, "eval_dataset": vectors(16, seed=1), "directions": 4}
    assert len(add_influence(rows.select(range(47, 7, -1)), tmp_path / "t", **scoring)) == 40
    with pytest.raises(TrajectoryError, match="is not what was recorded"):
        add_influence(rows.select(range(40)), tmp_path / "t", **scoring)


def test_dispatched_batches_without_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="dispatch_batches=True"):
        train(
            Mlp(),
            vectors(),
            tmp_path / "out",
            [TrajectoryCallback(tmp_path / "t")],
            accelerator_config={"dispatch_batches": True},
        )


def test_a_named_id_column_that_the_trainer_removes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="'uid' does not reach the dataloader"):
        train(Mlp(), vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t", id_column="uid")])


def test_ids_that_disagree_with_the_sampler_are_refused(tmp_path: Path) -> None:
    def shuffling(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return pad(rows[::-1])

    args = arguments(tmp_path / "out", remove_unused_columns=False)
    rows = with_example_ids(telling_rows(20))
    callback = TrajectoryCallback(tmp_path / "t")
    with pytest.raises(RecordingError, match="reorders rows"):
        Trainer(Telling(20), args, train_dataset=rows, data_collator=shuffling, callbacks=[callback]).train()


@pytest.mark.parametrize(
    ("optim", "why"),
    [
        ("adafactor", r"Adafactor cannot be recorded, because its denominators are products"),
        ("lion_32bit", r"bitsandbytes\.optim\.lion\.Lion cannot be recorded, because its step is the sign"),
        ("schedule_free_adamw", r"AdamWScheduleFree cannot be recorded, because the parameters"),
        ("rmsprop", r"torch\.optim\.rmsprop\.RMSprop cannot be recorded, because no adjoint"),
    ],
)
def test_other_optimizers_are_refused_before_the_first_step_and_the_reason_is_said(
    optim: str, why: str, tmp_path: Path
) -> None:
    if optim.startswith("schedule_free"):
        pytest.importorskip("schedulefree", reason="schedulefree is an optional integration")
    seen: list[int] = []
    callback = TrainerCallback()
    callback.on_step_begin = lambda args, state, control, **kwargs: seen.append(state.global_step)  # type: ignore[method-assign]
    callbacks = [TrajectoryCallback(tmp_path / "t"), callback]
    with pytest.raises(RecordingError, match=why + ".*train with optim='adamw_torch_fused'"):
        train(Mlp(), vectors(), tmp_path / "out", callbacks, optim=optim)
    assert seen == []


def test_a_class_that_only_shares_its_name_with_a_known_optimizer_is_refused_by_its_whole_name() -> None:
    class AdamW(torch.optim.AdamW):
        pass

    with pytest.raises(RecordingError, match=r"tests\.record\.test_refusals\.\S*AdamW cannot be recorded"):
        inner_optimizer(AdamW(Mlp().parameters()))


def state_of(kind: DistributedType, **kwargs: Any) -> Any:
    """Accelerate's, of a launch that needs an accelerator or a library that is not here."""
    return SimpleNamespace(distributed_type=kind, fsdp_plugin=SimpleNamespace(fsdp_version=1), **kwargs)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DistributedType.FSDP, "FSDP1"),
        (DistributedType.DEEPSPEED, "DEEPSPEED"),
        (DistributedType.MEGATRON_LM, "MEGATRON_LM"),
    ],
)
def test_parameters_that_are_not_sharded_by_fsdp2_are_refused(
    kind: DistributedType, name: str, tmp_path: Path
) -> None:
    with pytest.raises(RecordingError, match=f"Recording under {name} is not supported.*DDP.*FSDP2"):
        check_processes(arguments(tmp_path), state_of(kind), Mlp())


@pytest.mark.parametrize(("split", "name"), [("tp_size", "Tensor"), ("cp_size", "Context")])
def test_processes_that_share_examples_are_refused(split: str, name: str, tmp_path: Path) -> None:
    config = ParallelismConfig(**{split: 2})
    with pytest.raises(RecordingError, match=f"{name} parallelism .{split}. lets several processes"):
        check_processes(arguments(tmp_path), state_of(DistributedType.MULTI_GPU, parallelism_config=config), Mlp())


def test_replicas_of_shards_are_not_refused(tmp_path: Path) -> None:
    config = ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
    check_processes(arguments(tmp_path), state_of(DistributedType.MULTI_GPU, parallelism_config=config), Mlp())


def test_parameters_that_match_nothing_are_refused_with_examples(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"names look like: net\.0\.weight"):
        train(Mlp(), vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t", parameters="lora")])


def test_a_refused_run_leaves_no_record_and_no_hooks(tmp_path: Path) -> None:
    model = Mlp()
    with pytest.raises(RecordingError):
        train(model, vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t", parameters="lora")])
    assert not (tmp_path / "t").exists()
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("arguments_", "message"),
    [
        ({"window": 0.0}, "window"),
        ({"window": 1.5}, "window"),
        ({"snapshots_per_epoch": 0}, "snapshots_per_epoch"),
        ({"snapshot_dtype": "float16"}, "snapshot_dtype"),
        ({"parameters": "("}, "regular expression"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments_: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryCallback(tmp_path, **arguments_)


def test_a_callback_that_walks_through_the_training_data_does_not_disturb_the_ledger(tmp_path: Path) -> None:
    class Walker(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.walk(kwargs)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.walk(kwargs)

        def walk(self, kwargs: dict[str, Any]) -> None:
            iterator = iter(kwargs["train_dataloader"].base_dataloader)
            next(iterator)
            next(iterator)

    model = run(CASES["plain"], tmp_path, callbacks=[Walker()])
    assert recorded(Trajectory.open(tmp_path / "trajectory")) == model.seen
