"""The hidden states themselves, as one array."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repa_eval.api.alignment import capture_of, times_of
from repa_eval.api.encoding import Encoding, ScaleLike, VaeLike
from repa_eval.api.opening import ImagesLike, Model, Teachers, lent, open_images, open_model
from repa_eval.diffusion.layers import Layers, layer_numbers
from repa_eval.errors import UserError
from repa_eval.features.capture import Capture
from repa_eval.features.hidden_states import hidden_features
from repa_eval.features.store import default_folder
from repa_eval.runtime.hashing import digest_module


def features(
    model: Model,
    images: ImagesLike | None = None,
    *,
    layers: Layers = "all",
    timesteps: float | Iterable[float] = (0.1,),
    pool: str = "mean",
    cache: bool | str | Path = True,
    capture: Capture | None = None,
    teacher: Teachers | None = None,
    num_images: int | None = None,
    split: str | None = None,
    resolution: int | None = None,
    vae: VaeLike | None = None,
    posterior: str = "sample",
    latent_scale: ScaleLike | None = None,
    device: str | None = None,
) -> NDArray[np.float32]:
    """Return hidden states (layers, timesteps, N, D) of noised images, float32, in the order asked for.

    model, images, layers, timesteps, num_images, split, resolution, vae, posterior, latent_scale: as for `align`. pool:
    "mean" over the patch tokens, "cls" the class token, "none" for all patch tokens, (layers, timesteps, N, tokens, D).
    cache: True keeps them in the user's cache folder, where the same weights, images and settings find them again; a
    path keeps them there, False nowhere. teacher: whose class tokens a model reads (REG), where the checkpoint does not
    say it.
    UserError where layers of different widths are asked for together.
    """
    opened = open_model(model, device)
    numbers = layer_numbers(layers, opened.model.depth, aligned=opened.aligned_layer, names=opened.model.layer_names)
    source = open_images(images, opened.data, split=split, num_images=num_images, resolution=resolution)
    encoding = Encoding(vae=vae, posterior=posterior, latent_scale=latent_scale)
    how = encoding.capture(opened, capture or capture_of(opened, teacher, pool=pool))
    if how.cache is None and cache is not False:
        how = replace(how, cache=default_folder() / "kept" if cache is True else Path(cache))
    weights_hash = "" if how.cache is None else digest_module(opened.model)
    with lent(opened.model, *encoding.networks, device=opened.device):
        source = encoding.images(source, opened, how)
        found: list[dict[int, Any]] = [
            hidden_features(opened.model, source, layers=numbers, t=t, capture=how, weights_hash=weights_hash)
            for t in times_of(timesteps)
        ]
    widths = {layer: found[0][layer].shape[1:] for layer in numbers}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{layer}: {'x'.join(map(str, shape))}" for layer, shape in widths.items())
        raise UserError(f"these layers have different widths ({shown}): ask for those of one width at a time")
    return np.stack([np.stack([at_t[layer] for at_t in found]) for layer in numbers])
