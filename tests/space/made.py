"""Makes what a visitor opens, in the working directory and on the Hub: a run, rows, a selection and a report."""

from __future__ import annotations

from huggingface_hub import HfApi
from typer.testing import CliRunner

from hf_prune import TrajectoryCallback, add_influence, prune
from hf_prune.cli import app
from tests.toys import images, train, vit

rows, dev = images(32), images(16, seed=1)
rows.push_to_hub("alice/rows")
trainer = train(vit(), rows, "out", [TrajectoryCallback("trajectory")], num_train_epochs=2)
scored = add_influence(rows, "trajectory", model=trainer.model, eval_dataset=dev, directions=8)
pruned = prune(scored, keep=0.5)
measured = {
    "metric": "accuracy",
    "full": 0.9,
    "pruned": 0.88,
    "random": 0.81,
    "seeds": 4,
    "greater_is_better": True,
    "beside_random": 0.07,
    "beside_random_interval": [0.02, 0.12],
}
known = {"source_id": f"alice/rows@{HfApi().dataset_info('alice/rows').sha}"}
pruned.push_to_hub("alice/half", observed=measured, **known)
pruned.push_to_hub("alice/half", "unmeasured", **known)
pruned.push_to_hub("alice/hidden", private=True, **known)
pruned.save_to_disk("half")
pruned.selection.save("selection")
scored.save_to_disk("scored")
command = ["report", "half", "--source", "scored", "--title", "A report of the test"]
CliRunner().invoke(app, command, catch_exceptions=False)
