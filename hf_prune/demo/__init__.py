"""`hf-prune demo`: the main job end to end on real data that packages carry, offline. `run_demo` is the path."""

from hf_prune.demo.run import DemoResult, run_demo
from hf_prune.demo.task import Sizes, Task
from hf_prune.demo.tasks import make_task

__all__ = ["DemoResult", "Sizes", "Task", "make_task", "run_demo"]
