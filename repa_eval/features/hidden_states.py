"""Hidden states of a diffusion model for noised images, per layer and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.config import to_dict
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel, has_null_row
from repa_eval.errors import UserError
from repa_eval.features.capture import Capture, ClassTokens, collect
from repa_eval.features.model_input import ModelInput, model_input, refuse_images
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.runtime.hashing import digest_module
from repa_eval.runtime.seeding import generators, normal

Array = np.ndarray[Any, Any]


@torch.no_grad()
def hidden_features(
    model: DiffusionModel,
    images: ImageSource,
    *,
    layers: Sequence[int],
    t: float,
    capture: Capture | None = None,
    weights_hash: str = "",
) -> dict[int, Array]:
    """Return {layer: (N, D) float32} of the hidden states of noised images, all layers in one forward.

    t: time in [0, 1], 1 = noise. The noise of image i depends on (seed, stream, i) alone: the same for every layer,
    time and checkpoint. The label is the null label: the class must not leak into the features (REPA
    issues 24, 32). A model without one is given the class of each image, and its protocol says so.
    weights_hash: of the model, computed here if `capture` has a cache and none is given. The model is put into eval
    mode and stays there (`model_state.preserved` brings its own mode back).
    """
    if not 0.0 <= t <= 1.0:
        raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    capture = capture or Capture()
    if capture.cache is not None:
        weights_hash = weights_hash or digest_module(model)
    model.eval()

    reads = model_input(images, model.image_shape, capture.latents)

    def forward(samples: Samples, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        wanted = {name: int(name.removeprefix("layer")) for name in names}
        inputs = noised(
            model,
            samples,
            indices,
            reads=reads,
            t=t,
            interpolant=capture.interpolant,
            seed=capture.seed,
            stream=capture.stream,
            class_tokens=capture.class_tokens,
        )
        _, hidden = model(**inputs, taps=tuple(wanted.values()))
        return {name: capture.pooled(hidden[layer], model.prefix_tokens) for name, layer in wanted.items()}

    record = {
        "kind": "hidden states",
        "weights": weights_hash,
        "t": float(t),
        "path": to_dict(capture.interpolant),
        "dtype": str(next(model.parameters()).dtype),
        **model_record(model),
        **reads.record(),
    }
    names = {f"layer{layer}": layer for layer in layers}
    features = collect(images, names, forward, record, capture, kinds=kinds_for(model, reads))
    return {layer: features[f"layer{layer}"] for layer in layers}


def kinds_for(model: DiffusionModel, reads: ModelInput) -> tuple[str, ...]:
    """Return the kinds of data that `noised` needs.

    Images too, where a teacher gives the model its class token; labels or text, where it has no null condition.
    """
    further = {"images": model.has_class_token, "labels": not model.has_null_label, "text": model.reads_captions}
    return (reads.kind, *(kind for kind, needed in further.items() if needed))


def noised(
    model: DiffusionModel,
    samples: Samples,
    indices: Sequence[int],
    *,
    reads: ModelInput,
    t: float,
    interpolant: Interpolant,
    seed: int,
    stream: str,
    class_tokens: ClassTokens | None = None,
) -> dict[str, Tensor]:
    """Return what the model is given for B samples: x (noised) (B, C, H, W), t (B,), y (`condition`), on its device.

    reads: how its clean input is made of the samples; noise and posterior depend on (seed, stream, index) alone. And
    cls_token (B, z), noised at the same t, where the model has one; UserError if `class_tokens` is missing then.
    """
    like = next(model.parameters())
    x = reads(samples, generators(seed, f"{stream} posterior", indices))
    x = model.encode(x.to(like.device)).float().cpu() if reads.kind == "images" else x
    refuse_images(x.shape[1:], model.image_shape)
    noise = normal(generators(seed, stream, indices), x.shape[1:])
    times = torch.full((len(x),), t)
    x_t = model.noised(x, noise, times, interpolant).to(like)
    inputs = {"x": x_t, "t": times.to(like.device), "y": condition(model, samples, len(x))}
    if model.has_class_token:
        if class_tokens is None:
            raise UserError("this model reads a class token beside the image: name the teacher that it is from")
        clean = model.class_token(class_tokens(samples.pixels)).float().cpu()
        own = normal(generators(seed, f"{stream} class", indices), clean.shape[1:])
        inputs["cls_token"] = interpolant.mix(clean, own, times).to(like)
    return inputs


def condition(model: DiffusionModel, samples: Samples, count: int) -> Tensor:
    """Return y of B = `count` samples: the null condition, or what a model without one is given of the samples.

    That is their labels (B,), or the features of their captions (B, L, D). UserError for a label that the model does
    not have, and for features of another width.
    """
    if model.reads_captions:
        assert samples.text is not None, "the samples were fetched without text"
        width = model.config.context_size
        if samples.text.shape[-1] != width:
            raise UserError(f"the captions' features are {samples.text.shape[-1]} wide; this model reads {width}")
        return samples.text.to(next(model.parameters()))
    if model.has_null_label:
        return model.null_condition(count)
    assert samples.labels is not None, "the samples were fetched without labels"
    labels = torch.as_tensor(samples.labels, device=next(model.parameters()).device)
    wrong = labels[(labels < 0) | (labels >= model.num_classes)]
    if len(wrong):
        raise UserError(
            f"an image is of class {int(wrong[0])}; this model has labels 0..{model.num_classes - 1}, and no null label"
        )
    return labels


def label_record(config: Any) -> dict[str, str]:
    """Return the protocol entry of a network of this config that is given the images' labels, else none."""
    return {} if has_null_row(config) else {"label": "the image's own"}


def model_record(model: DiffusionModel | type[DiffusionModel]) -> dict[str, Any]:
    """Return the protocol entries of a model (or its class): another convention, a class token, a wrapped network."""
    record: dict[str, Any] = model.record() if isinstance(model, DiffusionModel) else {}
    if model.native != DiffusionModel.native:
        record["native_convention"] = model.native
    if isinstance(model, DiffusionModel) and not model.has_null_label:
        record |= label_record(model.config)
    if isinstance(model, DiffusionModel) and model.reads_captions:
        record["label"] = "the caption's features"
    if model.noising != DiffusionModel.noising:
        record["noising"] = model.noising
    if model.has_class_token:
        record["class_token"] = "the teacher's, noised at the same t"
    return record
