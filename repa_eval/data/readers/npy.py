"""One array of real numbers from the bytes of a .npy file, whose header is checked against what follows it."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import Failure, UserError, parsing
from repa_eval.runtime.npy_header import read_npy_header

MAX_BYTES = 1 << 28  # of one file: the latent of an image, or the features of a caption


def floats_of(data: bytes, where: str) -> Tensor:
    """Return the numbers of a .npy file as float32; Failure or UserError, one line, for a file that is anything else.

    where: how the file is called in errors. Numbers that are not finite are refused, too.
    """
    with parsing(f"{where} is not a readable .npy file"):
        stream = io.BytesIO(data)
        shape, fortran, dtype = read_npy_header(stream)
        if dtype.hasobject:
            raise Failure(f"{where} holds Python objects, which are never unpickled")
        if dtype.kind != "f":
            raise UserError(f"{where} holds {dtype}; floats are expected")
        if min(shape, default=0) < 0 or len(data) - stream.tell() != dtype.itemsize * math.prod(shape):
            raise ValueError(f"its {len(data) - stream.tell():,} bytes do not fit {dtype} {shape}")
        values = np.frombuffer(data, dtype=dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    numbers = torch.from_numpy(np.array(values, dtype=np.float32))
    if not bool(torch.isfinite(numbers).all()):
        raise Failure(f"{where} holds NaN or infinite numbers; make it again")
    return numbers
