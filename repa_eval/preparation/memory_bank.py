"""A memory bank from images: a teacher's features, gathered so that a killed call goes on, then the wanted form."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from repa_eval import __version__
from repa_eval.console.options import choose_device
from repa_eval.errors import UserError
from repa_eval.features.capture import POOLINGS, Capture
from repa_eval.features.teacher import teacher_features
from repa_eval.interfaces.teacher import Teacher, load_teacher
from repa_eval.memory_bank.bank import Bank, FullBank, compressed, difference
from repa_eval.memory_bank.files import SUFFIXES, load_bank, save_bank
from repa_eval.preparation.images import record_of
from repa_eval.runtime.distributed import Share, join


def make_bank(images: Any, dest: Path, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Write the memory bank of `images` and return what to say of it; None in every process but the first."""
    if dest.suffix not in SUFFIXES:
        raise UserError(f"{dest}: a memory bank is a .safetensors file, or .pth in the published form")
    share = join(choose_device(given["device"]))
    teacher = load_teacher(given["teacher"], given["teacher_weights"]).to(share.device)
    if given["form"] == "svd" and given["latent_dim"] > teacher.width:
        raise UserError(f"--latent-dim {given['latent_dim']}: snippets of {teacher.name} have {teacher.width} entries")
    record = _record(images, teacher, given)
    made = share.agree(_made_before(dest, record))
    if made is None:
        partial = dest.with_name(f".{dest.name}.partial")
        found = _snippets(images, teacher, partial, share, given)
        made = _write(found, dest, record, given) if share.first else None
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


def _record(images: Any, teacher: Teacher, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the snippets come from: what must agree for a bank to be the same."""
    return {
        **record_of(images, given),
        "teacher": teacher.name,
        "teacher_hash": teacher.digest,
        "snippet": POOLINGS[given["snippet"]],
        "form": given["form"],
        "latent_dim": given["latent_dim"] if given["form"] == "svd" else None,
    }


def _made_before(dest: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of the bank at `dest` if it is the wanted one, None if there is none; UserError if another."""
    if not dest.exists():
        return None
    before = dict(load_bank(dest).record)
    differing = sorted(key for key in record if before.get(key) != record[key])
    if differing:
        why = f"{', '.join(differing)} differ" if before else "it does not say of what"
        raise UserError(f"{dest} holds another memory bank ({why}); choose another DEST or remove it")
    return before


def _snippets(images: Any, teacher: Teacher, partial: Path, share: Share, given: Mapping[str, Any]) -> Bank:
    """Return the full bank, mapped from the files that grow batch by batch; what is there is not computed again."""
    from tqdm import tqdm

    size, hidden = given["batch_size"], True if given["quiet"] or not share.first else None
    with tqdm(total=-(-len(images) // size), desc="batches", disable=hidden, leave=False) as bar:
        capture = Capture(pool=given["snippet"], batch_size=size, cache=partial, share=share, progress=bar.update)
        return FullBank(torch.from_numpy(teacher_features(teacher, images, capture=capture)))


def _write(full: Bank, dest: Path, record: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Write the bank in the wanted form and return its whole record."""
    bank = compressed(full, given["latent_dim"]) if given["form"] == "svd" else full
    if given["form"] == "svd":
        record |= difference(full, bank)
    record = {**record, "versions": {"repa_eval": __version__, "torch": torch.__version__}}
    save_bank(bank.described(record), dest)
    return record
