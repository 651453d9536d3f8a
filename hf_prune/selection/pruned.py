"""The dataset that `prune` returns: a `Dataset` that knows which selection it is."""

from __future__ import annotations

from functools import cached_property, wraps
from types import ModuleType
from typing import Any

from datasets import Dataset, DatasetDict

from hf_prune._core import compat
from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.digest import column_digests, combine
from hf_prune.selection.selection import Selection


class PrunedDataset(Dataset):
    """
    The kept rows of a dataset, in their old order, with the [`Selection`] that they are.

    It is a `Dataset` in every respect. What leaves the rows as they are (`rename_column`, `remove_columns`,
    `with_format`) returns a `PrunedDataset`; what makes other rows (`map`, `filter`, `select`, `train_test_split`)
    returns a plain `Dataset`, for which the selection would no longer be true. Made by [`prune`].

    Attributes:
        selection (`Selection`): The rows that were kept and dropped, and the certificate.
        source (`Dataset`): The dataset that the selection was made from.
    """

    selection: Selection
    source: Dataset

    @classmethod
    def from_source(cls, source: Dataset, selection: Selection) -> PrunedDataset:
        """
        Takes the kept rows of `source`.

        Args:
            source (`Dataset`): The dataset that the selection was made from.
            selection (`Selection`): The selection.

        Raises:
            `ValueError`: If the source has not as many rows as the selection is about.
        """
        if len(source) != selection.n_rows:
            raise ValueError(
                f"The selection is about {selection.n_rows} rows but the dataset has {len(source)}: pass the "
                "dataset that it was made from."
            )
        # python ints: the fingerprint of `select` depends on the type of its argument
        rows = source.select(selection.keep_indices.tolist())
        pruned = compat.as_class(rows, cls)
        pruned.selection = selection
        pruned.source = source
        return pruned

    @property
    def _source_names(self) -> list[str]:
        scores = InfluenceColumns(self.selection.config.column)
        return [name for name in self.source.column_names if name not in scores]

    @cached_property
    def source_columns(self) -> dict[str, str]:
        """Content digest (SHA-256) of each column of the source dataset but the influence columns; read when asked."""
        return column_digests(self.source, self._source_names)

    @cached_property
    def source_digest(self) -> str:
        """Content digest (SHA-256) of the source dataset without its influence columns; read when asked."""
        return combine(len(self.source), self.source_columns)

    def filter(self, *args: Any, **kwargs: Any) -> Dataset:
        """As `Dataset.filter`; the result is a plain `Dataset`."""
        # `Dataset.filter` copies its own class and swaps the rows underneath, which would keep an untrue selection
        return compat.as_class(super().filter(*args, **kwargs), Dataset)

    def save_to_disk(
        self,
        dataset_path: Any,
        max_shard_size: str | int | None = None,
        num_shards: int | None = None,
        num_proc: int | None = None,
        storage_options: dict[str, Any] | None = None,
        *,
        include_scores: bool = False,
        include_tokens: bool = False,
    ) -> None:
        """
        Saves the rows as `Dataset.save_to_disk` does, and with them the selection, its provenance and a README.

        Influence columns, and tokens where the rows hold the text that they were made of, are saved where that is
        asked for.

        A directory that is there is replaced in one step, its other files kept, so that it is never half written.

        Args:
            dataset_path (`str` or `os.PathLike`): The directory. `load_from_disk` reads the rows from it.
            max_shard_size (`str` or `int`, *optional*): Largest size of a file, such as `"500MB"`.
            num_shards (`int`, *optional*): Number of files.
            num_proc (`int`, *optional*): Number of processes.
            storage_options (`dict`, *optional*): For the file system behind `dataset_path`.
            include_scores (`bool`, *optional*, defaults to `False`): Save the influence columns.
            include_tokens (`bool`, *optional*, defaults to `False`): Save the tokens.
        """

        def write_rows(rows: Dataset, directory: Any) -> None:
            Dataset.save_to_disk(rows, directory, max_shard_size, num_shards, num_proc, storage_options)

        included = {"include_scores": include_scores, "include_tokens": include_tokens}
        _publish().save(self, dataset_path, write_rows, storage_options, **included)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """
        Pushes the rows, the card and the provenance in one commit; nothing that an existing card says is lost.

        Further arguments are those of `Dataset.push_to_hub`, and those that [`~hf_prune.publish.push.push_to_hub`]
        adds.

        Args:
            repo_id (`str`): The dataset repository, such as `"me/imdb-half"`.
        """
        return _publish().push_to_hub(self, repo_id, *args, **kwargs)

    def __repr__(self) -> str:
        return (
            super()
            .__repr__()
            .replace("Dataset({", "PrunedDataset({", 1)
            .replace(f"num_rows: {self.num_rows}", f"num_rows: {self.num_rows} of {self.selection.n_rows}")
        )


class PrunedDatasetDict(DatasetDict):
    """
    A `DatasetDict` with a pruned split, which keeps its selection, card and provenance. Made by [`prune`].

    What leaves the rows as they are (`rename_column`, `remove_columns`, `with_format`) returns one too; what makes
    other rows returns a plain `DatasetDict`.
    """

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """
        Pushes all splits, the card and the provenance in one commit.

        Further arguments are those of `DatasetDict.push_to_hub` and [`PrunedDataset.push_to_hub`].

        Args:
            repo_id (`str`): The dataset repository, such as `"me/imdb-half"`.
        """
        return _publish().push_to_hub(self, repo_id, *args, **kwargs)


def _of_splits(name: str) -> Any:
    """A method of `DatasetDict` that leaves rows as they are, and returns this kind of dictionary."""
    method = getattr(DatasetDict, name)

    @wraps(method)
    def keeping(self: PrunedDatasetDict, *args: Any, **kwargs: Any) -> PrunedDatasetDict:
        return PrunedDatasetDict(method(self, *args, **kwargs))

    return keeping


for _name in ("rename_column", "rename_columns", "remove_columns", "select_columns", "with_format", "with_transform"):
    setattr(PrunedDatasetDict, _name, _of_splits(_name))


def _publish() -> ModuleType:
    """The one import that runs from selection up to publishing, for methods that a `Dataset` has to have."""
    from hf_prune.publish import methods

    return methods
