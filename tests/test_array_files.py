"""Arrays of an npz and statistics in files: any order of bytes, sizes that are checked, covariances that are ones."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from repa_eval.cli import main as repa_eval
from repa_eval.data.readers import arrays
from repa_eval.data.readers.arrays import Member
from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.npz import MAX_LABEL
from repa_eval.data.readers.statistics import open_statistics, write_statistics
from repa_eval.errors import Failure, UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)


def write(path: Path, compressed: bool = False, **members: tuple[tuple[int, ...], str]) -> Path:
    """An npz of zeros with these shapes and types, never held in memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, (shape, dtype) in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {"descr": dtype, "fortran_order": False, "shape": shape})
                left = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                while left > 0:
                    member.write(bytes(min(left, 1 << 22)))
                    left -= 1 << 22
    return path


# --- Fortran order


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("piece", [1, 41, 700, 1 << 24])
def test_images_in_fortran_order(save: Any, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "COPIED", piece)
    save(tmp_path / "f.npz", arr_0=np.asfortranarray(PIXELS), arr_1=np.arange(40))
    np.savez(tmp_path / "c.npz", arr_0=PIXELS, arr_1=np.arange(40))
    source = open_images(tmp_path / "f.npz")
    for rows in (range(40), [39, 0, 7], [3], range(5, 9)):
        images = source.fetch(rows).pixels.permute(0, 2, 3, 1).numpy()
        assert np.array_equal(images, PIXELS[list(rows)])
    assert source.digest() == open_images(tmp_path / "c.npz").digest()


@pytest.mark.parametrize("shape", [(7,), (7, 1), (1, 7), (4, 3), (3, 4, 5), (2, 3, 4, 5), (0, 4), (4, 0)])
@pytest.mark.parametrize("dtype", ["<f8", ">f4", "|u1", "<i2"])
def test_any_array_in_either_order(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    array = RNG.integers(0, 100, shape).astype(dtype)
    np.savez(tmp_path / "a.npz", f=np.asfortranarray(array), c=np.ascontiguousarray(array))
    for name in "fc":
        member = Member(tmp_path / "a.npz", name)
        assert np.array_equal(member.whole(), array)
        assert np.array_equal(member.rows(0, len(array)), array)
        if len(array) > 2 and array.size:
            assert np.array_equal(member.rows(1, 3), array[1:3])


def test_statistics_in_fortran_order(tmp_path: Path) -> None:
    a = RNG.standard_normal((9, 9))
    np.savez(tmp_path / "r.npz", mu=np.asfortranarray(a[0]), sigma=np.asfortranarray(a @ a.T))
    found = open_statistics(tmp_path / "r.npz")
    assert found is not None
    np.testing.assert_array_equal(found.sigma, a @ a.T)
    np.savez(tmp_path / "feats.npz", feats=np.asfortranarray(a))
    features = open_statistics(tmp_path / "feats.npz")
    assert features is not None
    np.testing.assert_array_equal(features.features, a)


# --- arrays that are not read, labels


def test_arrays_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    np.savez(tmp_path / "a.npz", arr_0=PIXELS, arr_1=np.zeros(40, int))
    open_images(tmp_path / "a.npz")
    assert not caplog.records
    np.savez(tmp_path / "a.npz", arr_0=PIXELS, arr_1=np.zeros(40, int), arr_2=PIXELS, latents=PIXELS)
    open_images(tmp_path / "a.npz")
    [record] = caplog.records
    assert "the images are those of arr_0; not read: arr_2, latents" in record.getMessage()


@pytest.mark.parametrize(
    "labels", [np.array([-1] * 40), np.array([MAX_LABEL + 1] * 40), np.array([2**63] * 40, np.uint64)]
)
def test_labels_that_are_none(labels: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=PIXELS, arr_1=labels)
    with pytest.raises(UserError, match=r"arr_1 has labels .*; 0\.\.16,777,216 are allowed"):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (5, 0, 8, 3), (5, 8, 0, 1)])
def test_images_of_no_size(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="arr_0 holds no images"):
        open_images(tmp_path / "a.npz")


# --- sizes


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"arr_0": ((256, 1000, 1000, 3), "|u1")}, "arr_0 expands from"),
        ({"arr_0": ((20_000_000, 1, 1, 1), "|u1"), "arr_1": ((20_000_000,), "<i8")}, "arr_1 expands from"),
        ({"mu": ((40_000_000,), "<f8"), "sigma": ((3, 3), "<f8")}, "mu expands from"),
        ({"feats": ((10_000, 2_000), "<f8")}, "feats expands from"),
    ],
)
def test_bombs_are_refused_by_their_headers(members: Any, text: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", True, **members)
    with pytest.raises(Failure, match=f"{text} .*possible decompression bomb"):
        open_statistics(file) or open_images(file)


def test_shapes_are_compared_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "whole", lambda self: pytest.fail("was read"))
    file = write(tmp_path / "a.npz", mu=((1000,), "<f8"), sigma=((3, 3), "<f8"))
    with pytest.raises(UserError, match=r"mu is \(1000,\) and sigma \(3, 3\)"):
        open_statistics(file)
    file = write(tmp_path / "b.npz", mu=((0,), "<f8"), sigma=((0, 0), "<f8"))
    with pytest.raises(UserError, match="mu has 0 entries"):
        open_statistics(file)


def test_what_is_held_in_memory_may_expand_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "SMALL", 1000)
    np.savez_compressed(tmp_path / "a.npz", a=np.tile(np.arange(60, dtype=np.uint8), 400), b=RNG.random(4000))
    assert Member(tmp_path / "a.npz", "b").whole().shape == (4000,)
    member = Member(tmp_path / "a.npz", "a")
    assert len(member.rows(5, 10)) == 5
    with pytest.raises(Failure, match="possible decompression bomb"):
        member.whole()


def test_a_flipped_bit_of_statistics_is_seen(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", mu=np.zeros(50), sigma=np.eye(50))
    data = bytearray((tmp_path / "r.npz").read_bytes())
    data[data.index(b"sigma.npy") + 2000] ^= 1
    (tmp_path / "r.npz").write_bytes(data)
    with pytest.raises(Failure, match="Bad CRC-32"):
        open_statistics(tmp_path / "r.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=PIXELS)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("arr_0.npy", b"")
    with pytest.raises(UserError, match="an array is there twice"):
        open_images(tmp_path / "a.npz")


# --- zero images


def test_statistics_without_images(tmp_path: Path) -> None:
    write_statistics(tmp_path / "r.npz", {"mu": np.zeros(3), "sigma": np.eye(3)}, [], (0, 8, 8, 1), {"n": 60})
    with np.load(tmp_path / "r.npz") as archive:
        assert sorted(archive.files) == ["mu", "provenance", "sigma"]
    found = open_statistics(tmp_path / "r.npz")
    assert found is not None
    assert found.images is None
    assert found.n == 60
    np.savez(tmp_path / "old.npz", mu=np.zeros(3), sigma=np.eye(3), arr_0=np.zeros((0, 8, 8, 1), np.uint8))
    older = open_statistics(tmp_path / "old.npz")
    assert older is not None
    assert older.images is None


def test_the_command_leaves_out_what_needs_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = RNG.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
    np.savez("real.npz", arr_0=images[:60])
    np.savez("fake.npz", arr_0=images[60:])
    runner = CliRunner()
    done = runner.invoke(
        repa_eval, ["stats", "real.npz", "--extractor", "digits", "--num-images", "0", "--out", "ref.npz"]
    )
    assert done.exit_code == 0, done.output
    words = "fid --samples fake.npz --extractor digits --metrics fd,precision_recall --quiet --reference"
    through = runner.invoke(repa_eval, [*words.split(), "ref.npz"])
    direct = runner.invoke(repa_eval, [*words.split(), "real.npz"])
    assert through.exit_code == 0, through.output
    rows = [
        {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if "_digits" in line}
        for done in (through, direct)
    ]
    assert rows[0]["fd_digits"] == rows[1]["fd_digits"]
    assert rows[0]["precision_digits"] == rows[0]["recall_digits"] == "-"
    assert "left out: ref.npz has no images (arr_0)" in through.stdout


# --- covariances


def spectrum(values: np.ndarray) -> np.ndarray:
    """A symmetric matrix of these eigenvalues."""
    basis, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((len(values), len(values))))
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def of_images(count: int, width: int, dtype: type = np.float64) -> np.ndarray:
    x = np.random.default_rng(2).standard_normal((count, width)).astype(dtype) * np.geomspace(1, 1e-3, width).astype(
        dtype
    ) + dtype(3)
    centred = x - x.mean(0)
    return centred.T @ centred / dtype(count - 1)


GOOD = {
    "of images": of_images(300, 64),
    "singular": of_images(20, 64),
    "of float32": of_images(300, 64, np.float32).astype(np.float64),
    "singular of float32": of_images(20, 64, np.float32),
    "in float16": of_images(300, 64).astype(np.float16),
    "by moments in float32": (lambda x: x.T @ x / len(x) - np.outer(x.mean(0), x.mean(0)))(
        np.random.default_rng(3).standard_normal((300, 64)).astype(np.float32) + np.float32(1)
    ),
    "zero": np.zeros((64, 64)),
    "large": of_images(300, 64) * 1e12,
    "small": of_images(300, 64) * 1e-12,
    "integers": np.eye(64, dtype=np.int64) * 7,
}
BAD = {
    "negative": (-spectrum(np.linspace(1, 2, 64)), "negative eigenvalues"),
    "one negative": (spectrum(np.r_[-0.01, np.linspace(0.1, 1, 63)]), "negative eigenvalues"),
    "small and negative": (spectrum(np.r_[-0.01, np.linspace(0.1, 1, 63)]) * 1e-12, "negative eigenvalues"),
    "not symmetric": (of_images(300, 64) + np.triu(np.full((64, 64), 0.01), 1), "not symmetric"),
    "antisymmetric": (np.triu(np.ones((64, 64)), 1) - np.tril(np.ones((64, 64)), -1), "not symmetric"),
    "features": (np.random.default_rng(0).standard_normal((64, 64)), "not symmetric"),
    "a negative variance": (np.diag(np.r_[-1.0, np.ones(63)]), "negative eigenvalues"),
    "indefinite": (np.ones((64, 64)) - np.eye(64), "negative eigenvalues"),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_covariances_are_read(kind: str, suffix: str, tmp_path: Path) -> None:
    found = open_statistics(stored(tmp_path, suffix, GOOD[kind]))
    assert found is not None
    np.testing.assert_array_equal(found.sigma, GOOD[kind].astype(np.float64))


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_what_is_no_covariance_is_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    matrix, text = BAD[kind]
    with pytest.raises(UserError, match=f"sigma is no covariance: it .*{text}"):
        open_statistics(stored(tmp_path, suffix, matrix))


def test_the_spatial_covariance_is_looked_at_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=-np.eye(2))
    with pytest.raises(UserError, match="sigma_s is no covariance"):
        open_statistics(tmp_path / "r.npz")


def stored(folder: Path, suffix: str, sigma: np.ndarray) -> Path:
    file, mu = folder / f"r{suffix}", np.zeros(len(sigma), dtype=sigma.dtype)
    if suffix == ".npz":
        np.savez(file, mu=mu, sigma=sigma)
    else:
        torch.save({"mu": mu, "sigma": sigma}, file)
    return file


# --- caches of torch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("grad", [False, True])
def test_caches_of_any_type(dtype: torch.dtype, grad: bool, tmp_path: Path) -> None:
    features = torch.from_numpy(RNG.standard_normal((50, 6))).to(dtype)
    mu, sigma = features.double().mean(0).to(dtype), torch.from_numpy(of_images(300, 6)).to(dtype)
    if grad:
        features, mu, sigma = (values.requires_grad_() for values in (features, mu, sigma))
    torch.save(features, tmp_path / "f.pt")
    torch.save({"mu": mu, "sigma": sigma}, tmp_path / "m.pt")
    torch.save(torch.nn.Parameter(features.detach()) if grad else features.T.contiguous().T, tmp_path / "p.pt")
    expected = features.detach().double().numpy()
    for name in ("f.pt", "p.pt"):
        found = open_statistics(tmp_path / name)
        assert found is not None
        np.testing.assert_array_equal(found.features, expected)
    held = open_statistics(tmp_path / "m.pt")
    assert held is not None
    np.testing.assert_array_equal(held.sigma, sigma.detach().double().numpy())
    np.testing.assert_array_equal(held.mu, mu.detach().double().numpy())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"mu": 1.0, "sigma": [1]}, "mu is a float and sigma a list, not arrays"),
        ({"mu": torch.zeros(3), "sigma": torch.zeros(3)}, r"mu is \(3,\) and sigma \(3,\)"),
        ({"mu": torch.zeros(2), "sigma": torch.full((2, 2), torch.nan)}, "holds NaN or infinity"),
        (torch.zeros(3, 2, dtype=torch.complex64), "features are complex64"),
        ({"mu": torch.zeros(2, dtype=torch.complex64), "sigma": torch.eye(2)}, "mu is .*complex"),
        (torch.zeros(0, 4), "features are float32"),
    ],
)
def test_caches_that_are_none(content: Any, text: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "r.pt")
    with pytest.raises(UserError, match=text):
        open_statistics(tmp_path / "r.pt")


def test_files_of_statistics_of_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3))
    torch.save({"mu": torch.zeros(3), "sigma": torch.eye(3)}, tmp_path / "b.pt")
    for name in "ab":
        data = (tmp_path / {"a": "a.npz", "b": "b.pt"}[name]).read_bytes()
        for suffix in (".npz", ".pt", ".pth", ".stats", ""):
            (tmp_path / f"x{suffix}").write_bytes(data)
            found = open_statistics(tmp_path / f"x{suffix}")
            assert found is not None
            np.testing.assert_array_equal(found.sigma, np.eye(3))
    (tmp_path / "x.txt").write_text("x")
    assert open_statistics(tmp_path / "x.txt") is None
