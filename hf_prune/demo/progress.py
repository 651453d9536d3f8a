"""Progress bars of the demo, all on stderr."""

from __future__ import annotations

from typing import Any

from datasets.utils import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingBar(TrainerCallback):
    """A bar over the steps of one training that goes away after it; the Trainer's own prints to stdout too."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = tqdm(total=state.max_steps, desc="Training", unit="step", leave=False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()
