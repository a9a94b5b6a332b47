"""Published weights from the hub or the authors' server; what is in the cache already needs no network."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

SECONDS = 5.0  # to wait for an answer of the server


def fetch(source: Any) -> Path:
    """Return the local file of timm's pretrained configuration `source`, downloaded if it is not in the cache.

    OSError, and at once, if there is no such file or no network (or HF_HUB_OFFLINE is set): the hub's own client would
    try again for most of a minute.
    """
    if source is not None and source.hf_hub_id:
        return _from_hub(source.hf_hub_id, source.hf_hub_filename or "model.safetensors")
    if source is not None and source.url:
        return _from_server(source.url)
    raise FileNotFoundError("nothing to download is known")


def _from_hub(repository: str, filename: str) -> Path:
    try:
        return Path(hf_hub_download(repository, filename, local_files_only=True))
    except EntryNotFoundError:  # not in the cache
        _ask(constants.ENDPOINT)
    return Path(hf_hub_download(repository, filename))


def _from_server(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        _ask(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))  # moves it there when it is complete
    return path


def _ask(url: str) -> None:
    """OSError unless a server answers, whatever it says."""
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return
