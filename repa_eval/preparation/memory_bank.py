"""A memory bank from images: a teacher's features, gathered so that a killed call goes on, then the wanted form."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repa_eval import __version__
from repa_eval.errors import UserError
from repa_eval.features.capture import POOLINGS, Capture
from repa_eval.features.teacher import teacher_features
from repa_eval.interfaces.teacher import Teacher, load_teacher
from repa_eval.memory_bank.bank import Bank, FullBank, compressed, difference
from repa_eval.memory_bank.files import SUFFIXES, load_bank, save_bank
from repa_eval.preparation.images import Source, Work
from repa_eval.runtime.files import remove_leftovers


@dataclass(frozen=True, kw_only=True)
class BankForm:
    """Whose features a bank holds, and in which form.

    snippet: "cls" (the teacher's class token) or "mean" (of its patches). kind: "full" (every snippet) or "svd" (their
    `latent_dim` leading directions). teacher_weights: file in place of the teacher's own weights.
    """

    teacher: str
    teacher_weights: Path | None = None
    snippet: str = "cls"
    kind: str = "full"
    latent_dim: int = 64


def make_bank(images: Any, dest: Path, source: Source, work: Work, *, form: BankForm) -> dict[str, Any] | None:
    """Write the memory bank of `images` and return a summary, None in every process but the first."""
    if dest.suffix not in SUFFIXES:
        raise UserError(f"{dest}: a memory bank is a .safetensors file, or .pth in the published form")
    share = work.share
    teacher = load_teacher(form.teacher, form.teacher_weights).to(share.device)
    if form.kind == "svd" and form.latent_dim > teacher.width:
        raise UserError(f"--latent-dim {form.latent_dim}: snippets of {teacher.name} have {teacher.width} entries")
    record = {**source.record(images), **_record(teacher, form)}
    made = share.agree(_made_before(dest, record))
    if made is None:
        partial = _partial(dest)
        found = _snippets(images, teacher, partial, form, work)
        made = _write(found, dest, record, form) if share.first else None
        shutil.rmtree(partial, ignore_errors=True) if share.first else None
    share.wait()
    return {"bank": str(dest), "bytes": dest.stat().st_size, "record": made} if share.first else None


def text_of(answer: Mapping[str, Any]) -> str:
    """Return the answer as lines for people."""
    record = answer["record"]
    form = f"svd, {record['latent_dim']} directions" if record["form"] == "svd" else "full"
    lines = [
        f"{answer['bank']}: {record['num_images']} snippets ({record['snippet']} of {record['teacher']} "
        f"{record['teacher_hash']}), {form}, {answer['bytes']:,} bytes"
    ]
    if "relative_error" in record:
        lines.append(
            f"error {record['relative_error']:.4f} of the snippets' length, {record['centred_error']:.4f} of their "
            f"spread; mean cosine {record['mean_cosine']:.5f}"
        )
    return "\n".join([*lines, f"next: repa-eval sample --ckpt CHECKPOINT --bank {answer['bank']} --out samples"])


def _record(teacher: Teacher, form: BankForm) -> dict[str, Any]:
    """Return what the snippets are of; with the images' record it identifies a bank."""
    return {
        "teacher": teacher.name,
        "teacher_hash": teacher.digest,
        "snippet": POOLINGS[form.snippet],
        "form": form.kind,
        "latent_dim": form.latent_dim if form.kind == "svd" else None,
    }


def _made_before(dest: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of the bank at `dest` if it is the wanted one, None if there is none; UserError if another."""
    remove_leftovers(dest)
    if not dest.exists():
        return None
    before = dict(load_bank(dest).record)
    differing = sorted(key for key in record if before.get(key) != record[key])
    if differing:
        why = f"{', '.join(differing)} differ" if before else "it does not record its source"
        raise UserError(f"{dest} contains another memory bank ({why}); choose another DEST or remove it")
    shutil.rmtree(_partial(dest), ignore_errors=True)  # of a call that was killed after the bank was in its place
    return before


def _partial(dest: Path) -> Path:
    """Return the folder of the features of a bank that is not finished."""
    return dest.with_name(f".{dest.name}.partial")


def _snippets(images: Any, teacher: Teacher, partial: Path, form: BankForm, work: Work) -> Bank:
    """Return the full bank, mapped from the files that grow batch by batch; what is there is not computed again."""
    from tqdm import tqdm

    size = work.batch_size
    with tqdm(total=-(-len(images) // size), desc="batches", disable=work.hidden, leave=False) as bar:
        capture = Capture(pool=form.snippet, batch_size=size, cache=partial, share=work.share, progress=bar.update)
        return FullBank(torch.from_numpy(teacher_features(teacher, images, capture=capture)))


def _write(full: Bank, dest: Path, record: dict[str, Any], form: BankForm) -> dict[str, Any]:
    """Write the bank in the wanted form and return its whole record."""
    bank = compressed(full, form.latent_dim) if form.kind == "svd" else full
    if form.kind == "svd":
        record |= difference(full, bank)
    record = {**record, "versions": {"repa_eval": __version__, "torch": torch.__version__}}
    save_bank(bank.described(record), dest)
    return record
