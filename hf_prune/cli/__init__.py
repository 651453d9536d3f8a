"""`hf-prune`: the command line. Commands import what they need when they run, so that `--help` is quick."""

from hf_prune.cli.application import app, main

__all__ = ["app", "main"]
