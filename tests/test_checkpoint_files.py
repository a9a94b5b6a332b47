"""Files of checkpoints: tensors go to the disk without a copy of the whole, and what the disk refuses is said."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from repa_eval.train import state

CONTENT: dict[str, Any] = dict.fromkeys(state.KEYS, 0)


class Recorded(io.BytesIO):
    """A file that keeps the sizes of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, data: Any) -> int:
        self.sizes.append(memoryview(data).nbytes)
        return super().write(data)


def test_tensors_are_written_from_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Any] = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **how: copies.append(self.shape) or clone(self, **how))
    whole = torch.arange(1000.0)
    file = Recorded()
    state.save_into(file, {**CONTENT, "model": {"whole": whole, "part": whole[:3], "rows": torch.ones(4, 6)[:, :2]}})
    assert copies == [(3,), (4, 2)]  # parts of a storage: the file would hold all of it
    assert file.tell() < 4000 + 4000  # the whole tensor once, and what torch adds
    assert max(file.sizes) <= 4000
    file.seek(0)
    back = torch.load(file, weights_only=True)["model"]
    assert torch.equal(back["whole"], whole)
    assert torch.equal(back["part"], whole[:3])
    assert back["part"].untyped_storage().nbytes() == 12


def test_a_full_disk_is_named() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left on device"):
        state.save_into(full, {**CONTENT, "model": {"a": torch.ones(1000)}})
