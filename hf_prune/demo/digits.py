"""The task `digits`: scikit-learn's handwritten digits, 8 x 8 pixels, through a small ViT from a config."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_prune.demo.task import Sizes, Task, missing_extra

SIZES = Sizes(train=1000, dev=300, test=497, epochs=10, directions=64)
SPLIT_SEED = 0
WINDOW = 0.3
"""Share of the run that is recorded; with 0.5 the sweep of this run is unstable: norms are a thousand times larger."""
SEEDS = 8
"""As many as it takes to tell the arms apart; epochs, rates and seeds were chosen on the dev rows."""


def digits(sizes: Sizes | None = None) -> Task:
    """Makes the task; the sizes of its three sets may sum to at most 1,797."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra(error) from error

    sizes = sizes or SIZES
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(classes))
    ends = np.cumsum([sizes.train, sizes.dev, sizes.test])
    if ends[-1] > len(classes):
        raise ValueError(f"The sizes sum to {ends[-1]} but there are {len(classes)} digits: pass smaller sizes.")
    parts = np.split(order[: ends[-1]], ends[:-1])
    train, dev, test = (_dataset(pixels[part].reshape(-1, 8, 8), classes[part]) for part in parts)
    return Task(
        name="digits",
        title="Handwritten digits, a small ViT from scratch",
        sizes=sizes,
        train=train,
        dev=dev,
        test=test,
        model=_model,
        scoring={"directions": sizes.directions},
        training={"per_device_train_batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 0.1},
        recording={"window": WINDOW},
        seeds=SEEDS,
        notes=(
            "Data: scikit-learn load_digits, split at random with a fixed seed.",
            f"The last {WINDOW:.0%} of the training steps are recorded: before them this run's steps are so large "
            "that influence carried back over them grows without bound.",
        ),
    )


def _model() -> nn.Module:
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={i: str(i) for i in range(10)},
        label2id={str(i): i for i in range(10)},
    )
    return ViTForImageClassification(config)


def _dataset(pixels: np.ndarray, classes: np.ndarray) -> Dataset:
    """`pixels` `(n, 8, 8)` from 0 to 16: as images for people, and scaled to [-1, 1] for the model."""
    from PIL.Image import fromarray

    line = List(Value("float32"), length=8)
    features = Features(
        image=Image(),
        pixel_values=List(List(line, length=8), length=1),
        label=ClassLabel(names=[str(i) for i in range(10)]),
    )
    grey = (pixels * 255 / 16).round().astype("uint8")
    rows = {
        "image": [fromarray(image) for image in grey],
        "pixel_values": (pixels[:, None] / 8 - 1).astype("float32"),
        "label": classes.tolist(),
    }
    return Dataset.from_dict(rows, features=features)
