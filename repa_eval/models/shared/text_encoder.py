"""A frozen, deterministic text encoder: a word is a Gaussian vector drawn from the hash of its letters.

Nothing is downloaded and nothing is trained, so that a network and the soft tokens put before its text always read the
same text. It knows no likeness between words, unlike CLIP or T5, for which it stands in on the embedded data.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.runtime.seeding import generator

NUM_WORDS, WIDTH = 8, 64


@functools.cache
def _vector(kind: str, what: str | int, width: int) -> Tensor:
    return torch.randn(width, generator=generator("hashed words", kind, what))


def encode(captions: Sequence[str], *, num_words: int = NUM_WORDS, width: int = WIDTH) -> Tensor:
    """Return text tokens (N, num_words, width), float32: the word's vector + half of the position's.

    Places after the last word hold the vector of the empty word. UserError for a caption of too many words.
    """
    rows = []
    for caption in captions:
        words = caption.lower().split()
        if len(words) > num_words:
            raise UserError(f"the caption {caption!r} has {len(words)} words; the text encoder reads {num_words}")
        padded = [*words, *[""] * (num_words - len(words))]
        tokens = [_vector("word", word, width) + 0.5 * _vector("place", i, width) for i, word in enumerate(padded)]
        rows.append(torch.stack(tokens))
    return torch.stack(rows)
