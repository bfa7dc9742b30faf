"""Move this process's share of each global batch to the device, loaded ahead."""

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from puna.data.corpus import Corpus
from puna.data.loader import batch, prefetch
from puna.train.recipe import TrainConfig


class LocalRows(NamedTuple):
    """Rows of a global batch.

    ids and targets: (rows, seq) on the device; documents: ids on the CPU or None.
    """

    ids: Tensor
    targets: Tensor
    documents: Tensor | None


def feed(
    corpus: Corpus, config: TrainConfig, *, data_step: int, start: int, stop: int, device: torch.device
) -> Generator[LocalRows, None, None]:
    """Yield rows start..stop of each batch from `data_step` on, indefinitely.

    A background thread loads two ahead. Close the iterator when done.
    """

    def make() -> Iterator[LocalRows]:
        step = data_step
        while True:
            rows = batch(
                corpus,
                seed=config.seed,
                step=step,
                rows=config.batch,
                seq_len=config.seq_len,
                document_mask=config.document_mask,
                start=start,
                stop=stop,
            )
            # Document ids stay on the CPU, where document starts are found without synchronizing with the device.
            documents = None if rows.document_ids is None else torch.from_numpy(rows.document_ids)
            yield LocalRows(_to_device(rows.input_ids, device), _to_device(rows.targets, device), documents)
            step += 1

    return prefetch(make())


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
