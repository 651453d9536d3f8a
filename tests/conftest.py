"""Settings of all tests; made before torch and the Hugging Face libraries are imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from hypothesis import Phase, settings

# The same examples in every run: a failure is one that everybody sees.
settings.register_profile("same", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("same")
# For mutation runs, which ask only whether a test fails.
settings.register_profile("first failure", settings.get_profile("same"), phases=[Phase.explicit, Phase.generate])
