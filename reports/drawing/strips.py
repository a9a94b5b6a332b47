"""Pictures that a run left behind: one strip per run and kind, from the same noise at every step."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repa_eval.reports.numbers.arms import Arm

PIXEL_ART = 64  # a strip lower than this is shown with hard pixel edges
_NAME = re.compile(r"^(?P<run>.+)/(?P<kind>[^/]+)-(?P<step>\d+)\.png$")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """One PNG with its step."""

    step: int
    width: int
    height: int
    uri: str

    @property
    def pixelated(self) -> bool:
        """Return whether the pixels are few enough to be shown one by one."""
        return self.height <= PIXEL_ART


@dataclass(frozen=True)
class Strip:
    """The pictures of one run and kind along training."""

    arm: Arm
    run: str
    kind: str
    pictures: tuple[Picture, ...]

    @property
    def further(self) -> bool:
        """Return whether another run (seed) of the arm stands before this one."""
        return self.run != self.arm.runs[0]


def strips(media: Mapping[str, bytes], arms: Sequence[Arm], budget: int) -> tuple[list[Strip], list[tuple[str, str]]]:
    """Return the strips in order of the arms, and (what, why) for every file that is not shown.

    budget: bytes that all pictures together may have; steps are left out evenly to keep to it.
    """
    found: dict[tuple[str, str], dict[int, bytes]] = {}
    left: list[tuple[str, str]] = []
    for name in sorted(media):
        parts = _NAME.match(name)
        if parts is None:
            left.append((name, "this report shows media/<kind>-<step>.png only"))
        elif size_of(media[name]) is None:
            left.append((name, "not a readable PNG"))
        else:
            found.setdefault((parts["run"], parts["kind"]), {})[int(parts["step"])] = media[name]
    total = sum(len(data) for steps in found.values() for data in steps.values())
    result = []
    for arm in arms:
        for run, kind in sorted(key for key in found if key[0] in arm.runs):
            steps = found.pop((run, kind))
            kept = thinned(steps, budget / total if total > budget else 1.0)
            if len(kept) < len(steps):
                left.append(
                    (
                        f"{kind} of {run}",
                        f"{len(steps) - len(kept)} of {len(steps)} steps left out to keep the file small",
                    )
                )
            result.append(Strip(arm, run, kind, tuple(picture_of(step, kept[step]) for step in sorted(kept))))
    left += [(f"{run}/{kind}", "the results name no such run") for run, kind in sorted(found)]
    return result, left


def thinned(steps: Mapping[int, bytes], share: float) -> dict[int, bytes]:
    """Return evenly spaced steps, the last one always among them, that hold about `share` of the bytes."""
    order = sorted(steps)
    if share >= 1 or len(order) < 2:
        return dict(steps)
    count = max(1, int(len(order) * share))
    places = {round(len(order) - 1 - place * len(order) / count) for place in range(count)}
    return {order[place]: steps[order[place]] for place in sorted(places) if place >= 0}


def picture_of(step: int, data: bytes) -> Picture:
    """Return a PNG as the page holds it."""
    width, height = size_of(data) or (0, 0)
    return Picture(step, width, height, "data:image/png;base64," + base64.b64encode(data).decode())


def size_of(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a complete PNG, None for anything else."""
    if not data.startswith(_SIGNATURE) or len(data) < 45 or data[12:16] != b"IHDR" or data[-8:-4] != b"IEND":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return (width, height) if width and height else None
