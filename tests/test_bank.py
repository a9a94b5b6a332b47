"""GMem's memory bank: both forms, what is read from files, what is refused, and the ways between two snippets."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from repa_eval.errors import Failure, UserError
from repa_eval.memory_bank import bank as banks
from repa_eval.memory_bank import files as bank_file
from repa_eval.memory_bank.bank import Bank, FullBank, SVDBank, compressed, difference, of_tensors
from repa_eval.memory_bank.files import load_bank, save_bank
from repa_eval.memory_bank.interpolation import INTERPOLATIONS, interpolate

N, D, K = 30, 12, 5


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def full() -> FullBank:
    """Snippets with a mean and directions of very different spread, as a teacher's are."""
    return FullBank(randn(N, D) * torch.logspace(0, -2, D) + 3 * randn(D, seed=1), {"teacher": "t"})


def forms() -> list[Bank]:
    return [full(), compressed(full(), K)]


# --- both forms


def test_all_directions_give_the_bank_back() -> None:
    bank = full()
    whole = compressed(bank, D)
    torch.testing.assert_close(whole.read(torch.arange(N)), bank.snippets, rtol=1e-5, atol=1e-5)
    assert whole.record == {"teacher": "t"}
    assert difference(bank, whole)["relative_error"] < 1e-6


def test_what_is_lost_is_what_the_singular_values_say() -> None:
    bank = full()
    centred = bank.snippets.double() - bank.snippets.double().mean(0)
    values = torch.linalg.svdvals(centred)
    errors = [difference(bank, compressed(bank, k)) for k in (1, K, D - 1)]
    for found, k in zip(errors, (1, K, D - 1), strict=True):
        assert found["centred_error"] == pytest.approx(float(values[k:].norm() / values.norm()), rel=1e-4)
        assert found["relative_error"] == pytest.approx(float(values[k:].norm() / bank.snippets.norm()), rel=1e-4)
    assert errors[0]["mean_cosine"] < errors[1]["mean_cosine"] <= 1


def test_the_factors_share_the_singular_values() -> None:
    bank = compressed(full(), K)
    torch.testing.assert_close(bank.C.T @ bank.C, bank.S.diag(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bank.M.T @ bank.M, bank.S.diag(), rtol=1e-4, atol=1e-4)


def test_the_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compressed(full(), K)
    monkeypatch.setattr(banks, "BLOCK", 7)
    for name, tensor in compressed(full(), K).tensors().items():
        torch.testing.assert_close(tensor, whole.tensors()[name])


def test_too_many_directions() -> None:
    flat = FullBank(randn(N, 3) @ randn(3, D, seed=2))
    assert compressed(flat, 3).latent_dim == 3
    with pytest.raises(UserError, match="latent_dim 4: these 30 snippets span 3 directions only"):
        compressed(flat, 4)
    for k in (0, D + 1):
        with pytest.raises(UserError, match=rf"latent_dim {k}: snippets of 12 entries have 1\.\.12 directions"):
            compressed(full(), k)


@pytest.mark.parametrize("bank", forms(), ids=lambda bank: bank.form)
def test_snippets_are_stored_raw_and_normalised_at_use(bank: Bank) -> None:
    rows = torch.tensor([4, 0, 4])
    raw = bank.read(rows)
    assert raw.dtype == torch.float32
    assert torch.equal(raw[0], raw[2])
    assert float(raw.norm(dim=1).min()) > 2
    torch.testing.assert_close(bank.conditions(rows), raw / raw.norm(dim=1, keepdim=True))
    torch.testing.assert_close(bank.row(4), raw[0])


@pytest.mark.parametrize("bank", forms(), ids=lambda bank: bank.form)
def test_rows_are_added_at_the_end_of_a_new_bank(bank: Bank) -> None:
    mixed = bank.added_between(2, 5, 0.25)
    assert (len(bank), len(mixed)) == (N, N + 1)
    torch.testing.assert_close(mixed.row(N), 0.25 * bank.row(2) + 0.75 * bank.row(5))  # alpha weighs the first
    again = mixed.added(bank.row(7))
    torch.testing.assert_close(again.row(N + 1), bank.row(7), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.read(torch.arange(N)), bank.read(torch.arange(N)))
    assert again.record == {"teacher": "t"}


def test_an_added_snippet_is_projected_on_the_directions() -> None:
    bank, new = compressed(full(), K), randn(D, seed=9)
    basis = torch.linalg.qr(bank.M)[0]
    wanted = bank.mean + basis @ (basis.T @ (new - bank.mean))
    torch.testing.assert_close(bank.added(new).row(N), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bank", forms(), ids=lambda bank: bank.form)
def test_rows_that_are_not_there_and_snippets_that_do_not_fit(bank: Bank) -> None:
    for row in (-1, N):
        with pytest.raises(UserError, match=rf"snippet {row}: this memory bank has rows 0\.\.29"):
            bank.row(row)
        with pytest.raises(UserError, match=f"snippet {row}"):
            bank.added_between(0, row, 0.5)
    with pytest.raises(UserError, match=r"a snippet of shape \(5,\): this memory bank holds \(12,\)"):
        bank.added(torch.ones(5))
    with pytest.raises(UserError, match="not finite"):
        bank.added(torch.full((D,), math.nan))


def test_bytes() -> None:
    bank, small = forms()
    assert bank.nbytes == 4 * N * D
    assert small.nbytes == 4 * (N * K + D * K + K + D)


# --- files


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("bank", forms(), ids=lambda bank: bank.form)
def test_a_bank_survives_its_file(bank: Bank, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"deeper/bank{suffix}"
    save_bank(bank, file)
    read = load_bank(file)
    assert (read.form, len(read), read.width) == (bank.form, N, D)
    assert all(torch.equal(tensor, bank.tensors()[name]) for name, tensor in read.tensors().items())
    assert read.record == ({"teacher": "t"} if suffix == ".safetensors" else {})
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    first = file.read_bytes()
    save_bank(bank, file)
    assert file.read_bytes() == first


def test_the_published_form_of_the_files(tmp_path: Path) -> None:
    bank, small = forms()
    save_bank(bank, tmp_path / "a.pth")
    save_bank(small, tmp_path / "b.pth")
    assert torch.equal(torch.load(tmp_path / "a.pth", weights_only=True), bank.tensors()["snippets"])
    content = torch.load(tmp_path / "b.pth", weights_only=True)
    assert set(content) == {"C", "M", "S", "mean", "latent_dim", "feature_dim"}
    assert (content["latent_dim"], content["feature_dim"]) == (K, D)
    content["mean"] = content["mean"][None]  # as keepdim would leave it
    torch.save(content, tmp_path / "c.pth")
    assert load_bank(tmp_path / "c.pth").width == D


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_our_file_is_plain_safetensors(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_file, "BLOCK", 7)
    bank = FullBank(full().snippets.to(dtype))
    save_bank(bank, tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["snippets"], bank.snippets)
    assert load_bank(tmp_path / "a.safetensors").read(torch.arange(3)).dtype == torch.float32


def test_a_numpy_file(tmp_path: Path) -> None:
    np.save(tmp_path / "bank.npy", full().snippets.numpy())
    assert torch.equal(load_bank(tmp_path / "bank.npy").read(torch.arange(N)), full().snippets)


def changed(**changes: Any) -> dict[str, Any]:
    return {**compressed(full(), K).tensors(), "latent_dim": K, "feature_dim": D, **changes}


def holed(value: float) -> Tensor:
    rows = full().snippets.clone()
    rows[17, 3] = value
    return rows


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        ([1, 2], UserError, r"holds list, not one tensor \(N, D\) or the C, M, S and mean of its SVD"),
        ({"C": randn(3, 2)}, UserError, r"holds dict, not one tensor \(N, D\).*its keys: C"),
        (torch.zeros(5), UserError, r"its tensor is \(5,\), not \(N, D\)"),
        (torch.zeros(0, 5), UserError, r"its tensor is \(0, 5\), not \(N, D\)"),
        (torch.zeros(2, 3, 4), UserError, r"its tensor is \(2, 3, 4\)"),
        (torch.ones(4, 4, dtype=torch.int64), UserError, r"snippets is torch\.int64, not floats"),
        (holed(math.nan), Failure, "snippets is not finite in row 17"),
        (holed(-math.inf), Failure, "snippets is not finite in row 17"),
        (full().snippets * (torch.arange(N) != 8)[:, None], UserError, "snippet 8 is all zeros: it has no direction"),
        (changed(C=randn(N, K + 1)), UserError, r"C \(30, 6\), M \(12, 5\), S \(5,\) and mean \(12,\) are not"),
        (changed(M=randn(D + 1, K)), UserError, r"M \(13, 5\)"),
        (changed(mean=randn(D - 1)), UserError, r"mean \(11,\)"),
        (changed(S=randn(K)[None].expand(2, K).clone()), UserError, r"S \(2, 5\)"),
        (changed(S=torch.tensor([3.0, 2, 1, 1, 0])), UserError, "a singular value in S is not positive"),
        (changed(mean=torch.full((D,), math.nan)), Failure, "mean is not finite in row 0"),
        (changed(latent_dim=64), UserError, "latent_dim 64, but its tensors have 5"),
        (changed(feature_dim=768), UserError, "feature_dim 768, but its tensors have 12"),
        (changed(C="C"), UserError, "C is str, not floats"),
    ],
)
def test_what_is_no_memory_bank(content: Any, error: type[Exception], text: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "bank.pth")
    with pytest.raises(UserError, match=text) as caught:
        load_bank(tmp_path / "bank.pth", what="--bank")
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"--bank {tmp_path}/bank.pth")
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_bank(full(), "whole.safetensors")
    Path("cut.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:-9])
    torch.save(full().snippets, "whole.pth")
    Path("cut.pth").write_bytes(Path("whole.pth").read_bytes()[:-99])
    Path("pickle.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"snippets": Evil()}, "evil.pth")
    Path("text.npy").write_text("no array")
    for name in ("cut.safetensors", "cut.pth", "pickle.pth", "evil.pth", "text.npy"):
        with pytest.raises(Failure, match=rf"^{name} (is not a|needs code execution|cannot be read)"):
            load_bank(name)
    assert not Path("executed").exists()
    with pytest.raises(UserError, match=r"^nothing\.pth does not exist$"):
        load_bank("nothing.pth")
    with pytest.raises(UserError, match=r"a\.npy: a memory bank is a \.safetensors file, or \.pth"):
        save_bank(full(), "a.npy")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bank.safetensors"
    save_bank(full(), file)
    before = file.read_bytes()

    def half(_bank: Bank, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(bank_file, "_write_safetensors", half)
    with pytest.raises(OSError, match="no space"):
        save_bank(compressed(full(), K), file)
    assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_tensors_tell_the_form() -> None:
    for bank in forms():
        again = of_tensors(bank.tensors(), bank.record)
        assert type(again) is type(bank)
        assert torch.equal(again.read(torch.arange(N)), bank.read(torch.arange(N)))
    assert isinstance(of_tensors(compressed(full(), K).tensors()), SVDBank)


# --- between two snippets

A, B = 3 * randn(D, seed=3), 0.2 * randn(D, seed=4)
ALPHAS = (0.0, 0.25, 0.5, 1.0)
HALVES = torch.rand(4, D, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_every_way_gives_snippets_of_length_one_whatever_the_ends_length(method: str) -> None:
    found = interpolate(A, B, ALPHAS, method, draws=HALVES)
    assert found.shape == (4, D)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(interpolate(7 * A, 3 * B, ALPHAS, method, draws=HALVES), found)


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_a_way_leads_from_a_to_b(method: str) -> None:
    found = interpolate(A, B, ALPHAS, method)
    torch.testing.assert_close(found[0], A / A.norm())  # alpha weighs the SECOND: not as in the bank's own rows
    torch.testing.assert_close(found[-1], B / B.norm())


def test_spherical_steps_are_equal_angles() -> None:
    found = interpolate(A, B, torch.linspace(0, 1, 5).tolist(), "spherical")
    angles = (found[1:] * found[:-1]).sum(1).clamp(-1, 1).acos()
    torch.testing.assert_close(angles, angles[:1].expand(4), rtol=1e-3, atol=1e-4)
    straight = interpolate(A, B, torch.linspace(0, 1, 5).tolist(), "linear")
    assert float((straight - found).abs().max()) > 0.01


def test_spherical_between_equal_and_opposite_snippets() -> None:
    torch.testing.assert_close(interpolate(A, 2 * A, ALPHAS, "spherical"), (A / A.norm()).expand(4, -1))
    with pytest.raises(UserError, match="the snippets are opposite"):
        interpolate(A, -A, ALPHAS, "spherical")


def test_parts_of_both() -> None:
    a, b = A / A.norm(), B / B.norm()
    found = interpolate(A, B, ALPHAS, "concat")
    wanted = torch.cat([a[: D // 2], b[D // 2 :]])
    torch.testing.assert_close(found, (wanted / wanted.norm()).expand(4, -1))
    masked = interpolate(A, B, ALPHAS, "mask", draws=HALVES)
    for row, draw in zip(masked, HALVES, strict=True):
        wanted = torch.where(draw > 0.5, a, b)
        torch.testing.assert_close(row, wanted / wanted.norm())


def test_an_unknown_way() -> None:
    with pytest.raises(UserError, match="interpolation 'cubic': choose linear, spherical, concat, mask"):
        interpolate(A, B, ALPHAS, "cubic")
