"""The README's five lines, as they stand there, on 1,000 rows: through training, scoring, pruning and a real push."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docs.figures import blocks, same_output
from tests.hub_server import Hub

ROOT = Path(__file__).parents[1]
BEFORE = """
import sys

sys.modules |= dict.fromkeys(["evaluate", "matplotlib"])  # as where the extras are not installed

from pathlib import Path

from datasets import load_dataset
from transformers import Trainer, TrainingArguments, set_seed

from tests.toys import bert, tokens

set_seed(2)
train, dev, model = tokens(1000), tokens(100, seed=1), bert()
# raw texts, from which the tokens were made in another order
texts = [" ".join(map(str, ids)) for ids in train["input_ids"]]
raw = train.remove_columns(["input_ids", "attention_mask"]).add_column("text", texts)
order = list(range(999, -1, -1))
train = train.add_column("text", texts).select(order)
args = TrainingArguments("run/checkpoints", num_train_epochs=2, per_device_train_batch_size=50, report_to=[],
                         learning_rate=5e-3, use_cpu=True, save_strategy="no", disable_tqdm=True)
"""
AFTER = """
assert len(pruned) == 500
print(pruned.selection.certificate.explain())
loaded = load_dataset("me/imdb-half", split="train")
assert loaded["text"][:] == pruned["text"][:]
assert loaded.column_names == ["labels", "text"]
assert sorted(loaded["text"]) == sorted(prune(scored, keep=0.5)["text"])
assert {"influence", "influence_norm", "influence_eval_loss"} <= set(scored.column_names)
"""


def test_the_readmes_five_lines_work_unchanged(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(BEFORE + blocks("README.md", "python")[0] + AFTER)
    with Hub() as hub:
        environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert same_output(blocks("README.md", "text")[0], done.stdout)
        assert "hf_prune/provenance.json" in hub.files("me/imdb-half")
        assert "README.md" in hub.files("me/imdb-half")
