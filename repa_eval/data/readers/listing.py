"""Which files of a folder or zip are its images, and which are left out: counted, by reason, to be said aloud."""

from __future__ import annotations

import logging
import os
import posixpath
import stat
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from repa_eval.errors import Failure, UserError
from repa_eval.runtime.distributed import is_first_process

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
UNREAD = frozenset(
    f".{name}"
    for name in (
        *("avif", "dds", "dng", "exr", "hdr", "heic", "heif", "ico", "j2k", "jp2", "jxl", "pbm", "pcx", "pgm", "pnm"),
        *("ppm", "psd", "svg", "tga"),
    )
)
SERVICE = frozenset({"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
SHOWN = 3  # names of an error or note
MAX_LINKED = 100_000  # folders behind links, which can multiply a tree without end
# A member of an archive may be large only as far as it is in the archive; many small ones may expand by this much too
BOMB_BYTES, BOMB_RATIO, BOMB_TOTAL = 1 << 25, 100, 1 << 30

_log = logging.getLogger(__name__)


@dataclass
class Listing:
    """The images of a folder or zip, and what is there beside them.

    sizes: bytes by path, relative and with "/", sorted by path. left_out: the paths of files that may have been meant
    as images, by the reason why they are none. suffixes: the files that are listed; those of images, unless said.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    suffixes: frozenset[str] = SUFFIXES

    @property
    def members(self) -> list[str]:
        """The paths of the images."""
        return list(self.sizes)

    def add(self, member: str, size: int) -> None:
        """Take a regular file: as an image, or as left out where its name is like an image's."""
        suffix = suffix_of(member)
        if suffix not in self.suffixes | UNREAD:
            return
        if is_hidden(member):
            self.leave_out("hidden or in a service folder", member)
        elif suffix not in self.suffixes:
            self.leave_out(f"format {suffix} is not read", member)
        else:
            self.sizes[member] = size

    def leave_out(self, reason: str, member: str) -> None:
        """Count a path that is not used."""
        self.left_out.setdefault(reason, []).append(member)

    def finished(self) -> Listing:
        """Return the listing, sorted."""
        left_out = {why: sorted(found) for why, found in sorted(self.left_out.items())}
        return Listing(dict(sorted(self.sizes.items())), left_out, self.suffixes)

    def notes(self) -> str:
        """Return what is left out in words, "" for nothing: "3 (broken link: a.png, b.png, c)"."""
        return ", ".join(f"{len(found)} ({why}: {_few(found)})" for why, found in self.left_out.items())

    def announce(self, name: str) -> None:
        """Log what is left out of the images of `name`; of several processes, the first does."""
        if self.left_out and is_first_process():
            _log.warning("%s: %d images are used; left out: %s", name, len(self.sizes), self.notes())


def list_folder(path: Path, suffixes: frozenset[str] = SUFFIXES) -> Listing:
    """Return the images below a folder, or the files of other suffixes.

    Links are followed, but for those that lead back into their own folder. Failure for a folder that cannot be read,
    UserError where links lead to more than MAX_LINKED of them.
    """
    listing = Listing(suffixes=suffixes)
    for folder, entry in _walk(path, listing):
        member = f"{folder}{entry.name}"
        try:
            state = entry.stat()
        except OSError:
            if not is_hidden(member):
                listing.leave_out("broken link", member)
            continue
        if stat.S_ISREG(state.st_mode):
            listing.add(member, state.st_size)
        elif stat.S_ISDIR(state.st_mode):  # _walk did not enter it
            listing.leave_out("link back into its own folder", member)
        elif suffix_of(member) in suffixes:
            listing.leave_out("no regular file", member)
    return listing.finished()


def list_zip(
    name: str, archive: zipfile.ZipFile, suffixes: frozenset[str] = SUFFIXES
) -> tuple[Listing, dict[str, zipfile.ZipInfo]]:
    """Return the images of a zip, or its files of other suffixes, and all members by the path that they are listed by.

    Names with backslashes, as some programs of Windows write them, are taken as paths. UserError for a member that
    would leave the archive, that is there twice, or that expands beyond all measure.
    """
    # a name may be empty, on which zipfile's own is_dir() breaks
    infos = [info for info in archive.infolist() if info.filename and not info.filename.endswith(("/", "\\"))]
    members: dict[str, zipfile.ZipInfo] = {}
    listing = Listing(suffixes=suffixes)
    for info in infos:
        member = info.filename.replace("\\", "/")
        if member in members:
            raise UserError(f"{name}: {printable(member)} is there twice; make the archive again")
        _refuse_outside(name, info.filename, member)
        members[member] = info
        listing.add(member, info.file_size)
    _refuse_bombs(name, members)
    return listing.finished(), members


def is_hidden(member: str) -> bool:
    """Return whether a relative path is hidden, or lies in a hidden or service folder (previews, backups, bins)."""
    return any((part.startswith(".") and part != ".") or part in SERVICE for part in member.split("/"))


def suffix_of(member: str) -> str:
    """Return the suffix of a path in lower case; pathlib would take ten times as long, and there may be a million."""
    return posixpath.splitext(member)[1].lower()


def leads_outside(written: str, member: str) -> bool:
    """Return whether a relative path, as it was written and with "/", is absolute or climbs out of its folder."""
    drive = written != member and PureWindowsPath(written).drive
    return member.startswith("/") or ".." in member.split("/") or bool(drive)


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file's name as text that can be written anywhere; bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk(path: Path, listing: Listing) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield ("a/b/", entry) for all that lies below a folder and is no folder, or is one that holds itself."""
    pending: list[_Folder] = [_Folder("")]
    linked = 0
    while pending:
        folder = pending.pop()
        linked += folder.linked
        if linked > MAX_LINKED:
            raise UserError(f"{printable(path)}: links lead to more than {MAX_LINKED:,} folders; remove some of them")
        try:
            above = folder.above | {_identity(os.stat(path / folder.name))}
            entries = sorted(os.scandir(path / folder.name), key=lambda entry: entry.name)
        except OSError as error:
            if folder.name and is_hidden(folder.name):
                listing.leave_out("cannot be read", folder.name)
                continue
            raise Failure(f"{printable(path / folder.name)} cannot be read: {error.strerror}") from error
        for entry in entries:
            if _is_folder(entry) and _identity(entry.stat()) not in above:
                pending.append(_Folder(f"{folder.name}{entry.name}/", above, folder.linked or entry.is_symlink()))
            else:
                yield folder.name, entry


@dataclass(frozen=True)
class _Folder:
    """A folder to be read. name: "a/b/"; above: the folders that it lies in; linked: a link led to it."""

    name: str
    above: frozenset[tuple[int, int]] = frozenset()
    linked: bool = False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _refuse_outside(name: str, written: str, member: str) -> None:
    """UserError for the name of a zip's member that is an absolute path or climbs out of its folder."""
    if leads_outside(written, member):
        raise UserError(f"{name}: {printable(member)} points outside of the archive; make the archive again without it")


def _refuse_bombs(name: str, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """UserError for a member, or a whole archive, that unpacks to far more than it takes."""
    for member, info in members.items():
        if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * max(info.compress_size, 1):
            raise UserError(
                f"{name}: {printable(member)} would unpack {info.compress_size:,} bytes to {info.file_size:,}: "
                "possible decompression bomb"
            )
    packed, unpacked = (sum(sizes) for sizes in (_sizes(members, "compress_size"), _sizes(members, "file_size")))
    if unpacked > BOMB_TOTAL and unpacked > BOMB_RATIO * packed:
        raise UserError(f"{name} would unpack {packed:,} bytes to {unpacked:,}: possible decompression bomb")


def _sizes(members: Mapping[str, zipfile.ZipInfo], which: str) -> Iterable[int]:
    return (getattr(info, which) for info in members.values())


def _few(names: Collection[str]) -> str:
    shown = [printable(name) for name in list(names)[:SHOWN]]
    return ", ".join([*shown, "..."] if len(names) > SHOWN else shown)
