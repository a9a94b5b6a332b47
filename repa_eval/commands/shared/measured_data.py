"""The images that a command measures, and how they become what the model reads: cropped, encoded by a VAE, scaled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from repa_eval.console.options import DataOptions, LatentOptions, parse_floats
from repa_eval.errors import UserError

if TYPE_CHECKING:
    from repa_eval.features.model_input import LatentReading
    from repa_eval.interfaces.image_source import ImageSource, LatentScale


def open_measured(
    name: str,
    model: Any,
    options: DataOptions,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    vae: Any = None,
) -> ImageSource:
    """Return the images to measure a model on, as many as asked for, encoded where --vae says it; see `encoded`."""
    from repa_eval.interfaces.images import held_out_split, load_data, measured_head

    source = load_data(name, options.split or held_out_split(name), resolution=options.resolution)
    images = measured_head(name, source, options.num_images)
    return encoded(images, model, options, cache=cache, device=device, vae=vae)


def encoded(
    images: ImageSource,
    model: Any,
    options: LatentOptions,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    vae: Any = None,
) -> ImageSource:
    """Return a source with latents by --vae; the source itself without --vae, and where it holds latents.

    cache: the folder in which latents outlive an interruption; None for a temporary one. vae: that of --vae where it is
    open already.
    """
    if options.vae is None:
        return images
    from repa_eval.api import encoding

    return encoding.encoded(
        images, vae or options.vae, model, cache=cache, device=device, check_scale=options.latent_scale is None
    )


def reading_of(opened: Any, options: LatentOptions) -> LatentReading:
    """Return how latents are read: the scale by --latent-scale, else by the checkpoint, else by the data or the VAE."""
    from repa_eval.features.model_input import latent_reading

    given = None if options.latent_scale is None else _scale(options.latent_scale, opened)
    return latent_reading(opened.latent_scale, given, posterior=options.posterior)


def _scale(text: str, opened: Any) -> LatentScale | tuple[float, float]:
    """Return the scale and the shift of "SCALE" or "SCALE,SHIFT", or of a file of mean and std per channel."""
    if Path(text).is_file():
        from repa_eval.data.readers.shards import statistics_scale

        return statistics_scale(Path(text), opened.diffusion_model.image_shape[0])
    parts = [part for one in text.split(",") for part in parse_floats(one, "--latent-scale")]
    if len(parts) not in (1, 2) or parts[0] == 0:
        raise UserError(f"--latent-scale {text!r}: expected SCALE, SCALE,SHIFT or a file, the scale not 0")
    return parts[0], parts[1] if len(parts) == 2 else 0.0
