"""REPA's options: several teachers, any depth, cosine or NT-Xent, the weight."""

from __future__ import annotations

import pytest
import torch

from helpers import batches_of, run, steps_of, tiny, wake
from repa_eval import checkpoints
from repa_eval.errors import UserError
from repa_eval.train.alignment import resized_tokens
from repa_eval.train.losses import cosine_alignment, sample_cosines, token_contrast


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def proj_loss(**changes: object) -> float:
    recipe, objective, images, teachers = steps_of(tiny("repa", **changes))
    wake(objective)
    [batch] = batches_of(recipe, images, teachers)
    return float(recipe.method.losses(objective.model, batch, 0)["proj_loss"].detach().mean())


def test_several_teachers_are_aligned_at_once(tmp_path) -> None:
    recipe, objective, images, teachers = steps_of(tiny("repa", enc_type="digits-vit,digits-vit-random"))
    wake(objective)
    [batch] = batches_of(recipe, images, teachers)
    assert len(batch.teachers) == len(objective.model.projectors) == 2
    both = recipe.method.losses(objective.model, batch, 0)["proj_loss"]
    whole, heads = batch.teachers, list(objective.model.projectors)
    alone = []
    for teacher, head in zip(whole, heads, strict=True):
        batch.teachers, objective.model.projectors = [teacher], torch.nn.ModuleList([head])
        alone.append(recipe.method.losses(objective.model, batch, 0)["proj_loss"])
    torch.testing.assert_close(both, torch.stack(alone).mean())
    last = run(tiny("repa", enc_type="digits-vit,digits-vit-random"), tmp_path / "run")
    assert checkpoints.load(last).model.config.z_dims == (96, 96)


def test_any_depth_and_weight() -> None:
    values = {depth: proj_loss(depth=4, encoder_depth=depth) for depth in (1, 2, 3, 4)}
    assert len(set(values.values())) == 4
    assert proj_loss(proj_coeff=0.5) == pytest.approx(0.5 * proj_loss(proj_coeff=1.0), rel=1e-6)


def test_the_cosine_is_a_mean_over_teachers_samples_and_tokens() -> None:
    targets, projected = [tokens(0, 3, 5, 8), tokens(1, 3, 5, 4)], [tokens(2, 3, 5, 8), tokens(3, 3, 5, 4)]
    by_hand = [
        sum(float(torch.cosine_similarity(z[i, n], h[i, n], dim=0)) for i in range(3) for n in range(5)) / 15
        for z, h in zip(targets, projected, strict=True)
    ]
    assert float(cosine_alignment(targets, projected)) == pytest.approx(-sum(by_hand) / 2, rel=1e-5)
    torch.testing.assert_close(-sample_cosines(targets, projected).mean(), cosine_alignment(targets, projected))


def test_half_precision_does_not_overflow() -> None:
    large = 400 * tokens(0, 2, 4, 768).half()
    assert float(cosine_alignment([large], [large])) == pytest.approx(-1, abs=1e-3)
    assert bool(token_contrast([large], [large], 0.1).isfinite().all())


# --- NT-Xent


def test_nt_xent_by_hand() -> None:
    z, h = tokens(0, 2, 3, 8), tokens(1, 2, 3, 8)
    by_hand = torch.zeros(2)
    for i in range(2):
        for n in range(3):
            logits = torch.stack([torch.cosine_similarity(h[i, n], z[i, m], dim=0) for m in range(3)]) / 0.2
            by_hand[i] += (logits.exp().sum().log() - logits[n]) / 3
    torch.testing.assert_close(token_contrast([z], [h], 0.2), by_hand)
    torch.testing.assert_close(token_contrast([z, z], [h, h], 0.2), by_hand)


def test_nt_xent_of_a_sample_depends_on_that_sample_alone() -> None:
    z, h = tokens(0, 4, 6, 8), tokens(1, 4, 6, 8)
    together = token_contrast([z], [h], 0.1)
    torch.testing.assert_close(
        torch.cat([token_contrast([z[i : i + 1]], [h[i : i + 1]], 0.1) for i in range(4)]), together
    )
    assert float(token_contrast([z], [z], 0.1).mean()) < 0.1 < float(together.mean())


def test_nt_xent_trains() -> None:
    assert proj_loss(proj_loss="nt-xent") > 0 > proj_loss(proj_loss="cosine") - 1
    with pytest.raises(UserError, match="proj_loss: 'ntxent' is not allowed; choose one of cosine, nt-xent"):
        tiny("repa", proj_loss="ntxent")


def test_a_teacher_of_another_grid_is_resized_only_where_the_recipe_says_so() -> None:
    recipe, objective, images, teachers = steps_of(tiny("repa"))
    [batch] = batches_of(recipe, images, teachers)
    batch.teachers = [tokens(0, len(batch.x), 9, 96)]
    with pytest.raises(UserError, match=r"gives 9 tokens per image, the model has 16; resize_tokens=true interpolates"):
        recipe.method.losses(objective.model, batch, 0)
    resizing = steps_of(tiny("repa", resize_tokens=True))[0]
    assert bool(resizing.method.losses(objective.model, batch, 0)["proj_loss"].isfinite().all())
    assert resizing.to_dict()["options"]["resize_tokens"] is True
    # bilinear, corners not aligned: the new centres lie at (i + .5) 3/4 - .5 of the old grid
    coarse = tokens(1, 1, 9, 2)
    grid, resized = coarse.reshape(3, 3, 2), resized_tokens(coarse, 16).reshape(4, 4, 2)
    row, column = 1.5 * 0.75 - 0.5, 2.5 * 0.75 - 0.5  # between rows 0 and 1, between columns 1 and 2
    upper = grid[0, 1] * (2 - column) + grid[0, 2] * (column - 1)
    lower = grid[1, 1] * (2 - column) + grid[1, 2] * (column - 1)
    torch.testing.assert_close(resized[1, 2], upper * (1 - row) + lower * row)
    with pytest.raises(UserError, match="8 tokens of a teacher cannot be resized to 16: one grid is not square"):
        resized_tokens(tokens(0, 1, 8, 2), 16)


def test_another_number_of_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="a teacher gives 1 tokens per image, the model has 16"):
        cosine_alignment([tokens(0, 2, 1, 8)], [tokens(1, 2, 16, 8)])
