"""`hf:owner/name[:file]`: a checkpoint on the Hugging Face Hub, downloaded once into its cache."""

from __future__ import annotations

from pathlib import Path

from repa_eval.errors import Failure, UserError, first_line

PREFIX = "hf:"
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def local(path: str | Path) -> str | Path:
    """Return `path` itself, or where the file that "hf:owner/name[:file]" names lies after its download."""
    if not str(path).startswith(PREFIX):
        return path
    owner_name, _, file = str(path).removeprefix(PREFIX).partition(":")
    if owner_name.count("/") != 1:
        raise UserError(f"{path}: expected hf:owner/name or hf:owner/name:file")
    return _download(owner_name, file)


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        if file:
            return Path(hf_hub_download(repository, file))
        files = HfApi().list_repo_files(repository)
        if "config.json" in files or "model_index.json" in files:
            return Path(snapshot_download(repository))
        found = [name for name in files if name.endswith(ENDINGS)]
        if len(found) == 1:
            return Path(hf_hub_download(repository, found[0]))
    except Exception as error:  # its transport, and so the errors, changed from requests to httpx to another
        raise Failure(f"{PREFIX}{repository} cannot be fetched: {first_line(error)}") from error
    names = ", ".join(found) or "none"
    raise UserError(f"{PREFIX}{repository} holds several files or no weights ({names}): add :FILE to name one")
