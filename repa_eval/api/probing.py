"""What a linear or k-NN probe reads out of hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from repa_eval.api.alignment import capture_of, times_of
from repa_eval.api.encoding import Encoding, ScaleLike, VaeLike
from repa_eval.api.opening import Model, Teachers, device_of, lent, open_model, open_teachers
from repa_eval.api.results import LayerMap
from repa_eval.diffusion.layers import Layers, layer_numbers
from repa_eval.errors import UserError
from repa_eval.evaluation.alignment import TIMESTEPS
from repa_eval.features.capture import Capture
from repa_eval.interfaces.recorded_names import recorded_data
from repa_eval.probes import grid
from repa_eval.probes.batch_norm import Training
from repa_eval.probes.splits import Splits, probe_splits


def probe(
    model: Model,
    images: Splits | str | None = None,
    *,
    teacher: Teachers | None = None,
    layers: Layers = "all",
    timesteps: float | Iterable[float] = TIMESTEPS,
    kinds: str | Iterable[str] = grid.KINDS,
    training: Training | None = None,
    shots: int | None = None,
    capture: Capture | None = None,
    columns: Mapping[str, Any] | None = None,
    test_images: str | None = None,
    resolution: int | None = None,
    vae: VaeLike | None = None,
    posterior: str = "sample",
    latent_scale: ScaleLike | None = None,
    device: str | None = None,
) -> LayerMap:
    """Measure how well probes read the class out of a diffusion model's hidden states.

    model, layers, timesteps, resolution, vae, posterior, latent_scale: as for `align`. images: the name of a data set,
    or its three labelled parts as repa_eval.probes.splits.Splits(train, val, test); None for what the checkpoint was
    trained on. test_images: the name of other data that test images are of. teacher: whose own accuracy is added as
    METRIC_teacher, a reference level without a layer; None for none. kinds: of linear (ridge), knn, linear-bn (the REPA
    paper's; training: how) and logistic. shots: fit on so many images of each class.
    """
    opened = open_model(model, device)
    numbers = layer_numbers(layers, opened.model.depth, aligned=opened.aligned_layer, names=opened.model.layer_names)
    encoding = Encoding(vae=vae, posterior=posterior, latent_scale=latent_scale)
    how = encoding.capture(opened, capture or capture_of(opened, teacher))
    if isinstance(images, Splits):
        splits = images
    else:
        splits = _named_splits(images, opened.data, test_images, resolution, how.seed)
    splits = splits if shots is None else splits.few(shots, seed=how.seed)
    where = opened.device or str(device_of(opened.model))
    fit: dict[str, Any] = {
        "kinds": list(dict.fromkeys(kinds.split(",") if isinstance(kinds, str) else kinds)),
        "training": training or Training(device=where),
        "capture": how,
    }
    teachers = [] if teacher is None else open_teachers(teacher, opened, where)
    own = {**opened.columns, **(columns or {})}
    with lent(opened.model, *teachers, *encoding.networks, device=opened.device):
        opened_vae = encoding.on(opened)
        splits = splits.mapped(lambda part: opened_vae.images(part, opened, how))
        rows = grid.probe(opened.model, splits, layers=numbers, timesteps=times_of(timesteps), columns=own, **fit)
        for one in teachers:
            level_columns = {"run": own["run"]} if "run" in own else {}
            rows += grid.teacher_level(one, splits, columns=level_columns, **fit)
    return LayerMap(tuple(rows))


def _named_splits(
    given: str | None, data: str | None, test_data: str | None, resolution: int | None, seed: int
) -> Splits:
    name = given or recorded_data(data, "the checkpoint", "images=")
    if not name:
        raise UserError("the model does not say what it was trained on: name the images, such as images='digits'")
    return probe_splits(name, test_data, resolution=resolution, seed=seed)
