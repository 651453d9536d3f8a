"""What one process writes of a snapshot that is too large for the memory of one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch

from hf_prune._core import sharding
from hf_prune.trajectory.manifest import Parameter
from hf_prune.trajectory.parts import PIECES, RANK, Piece, piece_digest, piece_name


@dataclass(frozen=True)
class OwnPiece:
    """
    What this process holds of one parameter.

    Args:
        name (`str`): The parameter.
        dim (`int`): The dimension that it is cut along.
        start (`int`): Where the piece begins there.
        shape (`tuple[int, ...]`): Of the piece.
    """

    name: str
    dim: int
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OwnPieces:
    """
    Args:
        rank (`int`): This process.
        pieces (`tuple[OwnPiece, ...]`): Of each recorded parameter, in their order.
    """

    rank: int
    pieces: tuple[OwnPiece, ...]

    @classmethod
    def of(cls, rank: int, parameters: Iterable[Parameter], tensors: Iterable[torch.Tensor]) -> OwnPieces:
        found = []
        for parameter, tensor in zip(parameters, tensors, strict=True):
            dim, start, part = sharding.own_part(tensor)
            found.append(OwnPiece(parameter.name, dim, start, tuple(part.shape)))
        return cls(rank, tuple(found))

    @property
    def size(self) -> int:
        """Entries of all of them."""
        return sum(torch.Size(piece.shape).numel() for piece in self.pieces)

    def file(self, vectors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """
        The tensors of this process's file, and the metadata that tell where they belong.

        Args:
            vectors (`Mapping[str, torch.Tensor]`): For each kind, the pieces one after the other, `(size,)`.
        """
        tensors, places = {}, {}
        for kind, vector in vectors.items():
            parts = vector.split([torch.Size(piece.shape).numel() for piece in self.pieces])
            for piece, part in zip(self.pieces, parts, strict=True):
                if part.numel():
                    name = piece_name(kind, piece.name)
                    tensors[name] = part.view(piece.shape)
                    digest = piece_digest(name, piece.dim, piece.start, tensors[name])
                    places[name] = asdict(Piece(piece.dim, piece.start, digest))
        return tensors, {RANK: str(self.rank), PIECES: json.dumps(places)}
