"""Images from a model, into a folder or an npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from repa_eval.api.opening import Model, OpenedModel, device_of, lent, open_model
from repa_eval.diffusion.conventions import unwrap
from repa_eval.diffusion.guidance import Guidance
from repa_eval.errors import UserError
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.runtime.hashing import digest_module
from repa_eval.sampling.generate import bank_for, chosen_of, generate
from repa_eval.sampling.sample_files import open_samples
from repa_eval.sampling.vae import decoder_for


def sample(
    model: Model,
    num: int,
    out: str | Path,
    *,
    sampler: str = "",
    sampler_options: Mapping[str, Any] | None = None,
    num_steps: int = 50,
    cfg_scale: float = 1.0,
    guidance_low: float = 0.0,
    guidance_high: float = 1.0,
    labels: Sequence[int] = (),
    balanced: bool = False,
    seed: int = 0,
    settings: SamplerSettings | None = None,
    vae: str | None = None,
    batch_size: int = 256,
    flat: bool = False,
    device: str | None = None,
    progress: bool = False,
) -> Path:
    """Generate `num` images into a folder of PNG files or, with the suffix .npz, into one file; return its path.

    An image depends on the seed and its index alone. What an interrupted call left in `out` is kept and continued.
    sampler: a name of `repa-eval list samplers`, by default the model's own; sampler_options: {name: value} of what it
    declares, such as {"mode": "sde"}. cfg_scale: classifier-free guidance, 1 = none; it applies where guidance_low <= t
    <= guidance_high. labels: these in turn; balanced: all classes equally often; else random.
    settings: all of it at once, in place of the arguments before it. vae: folder or hub name of the AutoencoderKL that
    decodes latents, where the model does not decode them itself. batch_size: images per forward; an image may differ by
    one grey level between two batch sizes. The model is left in the mode and on the device that it was on.
    """
    if num < 1:
        raise UserError(f"num {num}: at least 1 image is generated")
    opened = open_model(model, device)
    inner, target = opened.model, Path(out)
    chosen = settings or SamplerSettings(
        family=sampler,
        options=sampler_options or {},
        num_steps=num_steps,
        interpolant=opened.interpolant,
        guidance=Guidance(cfg_scale=cfg_scale, low=guidance_low, high=guidance_high),
        labels=tuple(labels),
        balanced=balanced,
        seed=seed,
    )
    chosen = chosen.for_model(inner)
    bank = bank_for(inner, None)
    with lent(inner, device=opened.device):
        scale = None if opened.checkpoint is None else opened.checkpoint.latent_scale
        decoder = None if inner.decodes else decoder_for(inner, vae, str(device_of(inner)), scale)
        record = {**_origin(opened), **chosen.record(), **inner.record(), "batch_size": batch_size}
        record["dtype"] = str(next(inner.parameters()).dtype).removeprefix("torch.")
        if decoder is not None:
            record.update(decoder.record())
        if bank is not None:
            record.update({"labels": "snippets", "bank": "the checkpoint's"})
        files = open_samples(target, record, flat=flat)
        missing = files.missing(num)
        with tqdm(total=len(missing), disable=None if progress else True, leave=False) as bar:
            for indices, images, _ in generate(inner, missing, chosen, batch_size=batch_size, decode=decoder):
                files.add(indices, images)
                bar.update(len(indices))
        files.finish(chosen_of(range(num), inner, chosen, bank).numpy())
    return target


def _origin(opened: OpenedModel) -> dict[str, Any]:
    """Return what the record says of the model: the same as that of `repa-eval sample` for a checkpoint."""
    recipe = {} if opened.checkpoint is None else opened.checkpoint.recipe
    return {
        **opened.columns,
        "weights_hash": digest_module(unwrap(opened.model)),
        "data": recipe.get("data"),
        "extractor": recipe.get("evaluation", {}).get("extractor"),
    }
