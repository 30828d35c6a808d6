"""What a run was made from is never written over: found by path, by link and by the file itself."""

import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from saff import layout
from saff.access import OF_MANIFEST
from saff.addresses import is_local, locate
from saff.containers import split_member
from saff.errors import SettingsError
from saff.layout import OWN_NAMES, PART_SUFFIX
from saff.rows import parts_of
from saff.runs import read_run
from saff.shards import read_column
from saff.storage import Folder

Inode = tuple[int, int]


def refuse_inputs(output: Folder, stage: str, targets: Callable[[], Iterable[str]]) -> None:
    """Refuse to write over what a run was made from, before anything is written.

    Paths are compared with their links resolved, without case and after Unicode normalisation, and
    files by their inode, so that hard links are found.

    Parameters
    ----------
    output : Folder
        A run; its images are those of its manifest and of a stage.
    stage : str
        ``"pseudo_labels"`` or ``"predictions"``.
    targets : callable
        Gives the paths or URIs of the files that are to be written.

    Raises
    ------
    SettingsError
        If a target is an image of the run, its list of images, or lies among its results.
    """
    names = FileNames()
    own = tuple(f"{names.of_folder(output.uri)}/{name}" for name in OWN_NAMES)
    inputs = partial(inputs_of, output, stage)
    folders = {posixpath.dirname(name) for place in inputs() for name in names.of_input(place)}
    by_name: dict[str, str] = {}  # only what could be an input: a large export is not held
    by_inode: dict[Inode, str] = {}
    for place in map(located, targets()):
        name = names.of(place)
        if name.startswith(own):
            raise SettingsError(
                f"{place} lies among the results of the run itself; name a folder of its own"
            )
        if posixpath.dirname(name) in folders:
            by_name[name] = place
        if (inode := inode_of(place)) is not None:
            by_inode[inode] = place
    if not (by_name or by_inode):
        return
    for place in inputs():
        found = [by_name[name] for name in names.of_input(place) if name in by_name]
        if not found and by_inode and (inode := inode_of(place)) in by_inode:
            found = [by_inode[inode]]
        if found:
            raise SettingsError(
                f"{found[0]} would be written over {place}, from which this run was made; name "
                "another place"
            )


def inputs_of(output: Folder, stage: str) -> Iterator[str]:
    """Places that a run was made from: its list of images, and each image; see :func:`located`."""
    source = str(read_run(output).get("source", "")).removeprefix(OF_MANIFEST)
    if source:
        yield located(source)
    manifest, addresses = layout.manifest(output), layout.addresses(output)
    for folder, names in (
        (manifest, manifest.names(PART_SUFFIX)),
        (addresses, addresses.names(PART_SUFFIX)),
        (output / stage, parts_of(output, stage)),
    ):
        for name in names:
            yield from (located(uri) for uri in read_column(folder, name, "uri") if uri)


def is_among_images(output: Folder, place: str) -> bool:
    """Whether a folder lies in the one whose files are the run's images, but not in its output.

    A file that is written there is an image to label the next time that the folder is listed.
    """
    source = str(read_run(output).get("source", ""))
    if not source or source.startswith(OF_MANIFEST):
        return False
    names = FileNames()
    images, own, target = (f"{names.of_folder(uri)}/" for uri in (source, output.uri, place))
    return target.startswith(images) and not target.startswith(own)


def is_same_file(one: str, other: str) -> bool:
    """Whether two paths or URIs are one file, also by a link or by a name in another case."""
    names, places = FileNames(), (located(one), located(other))
    if set.intersection(*({names.of(place), *names.of_input(place)} for place in places)):
        return True
    inode, second = map(inode_of, places)
    return inode is not None and inode == second


def located(uri: str) -> str:
    """Absolute path of a file of this machine; any other address stays as it is.

    The address of an image inside a file is that of the file.
    """
    uri, _ = split_member(uri)
    try:
        fs, path = locate(uri, signed=True)
    except SettingsError:
        return uri
    return str(path) if is_local(fs) else uri


class FileNames:
    """Gives two names of one file one spelling: without links, case and ways to write accents.

    Places are as :func:`located` gives them; addresses of another machine stay as they are.
    """

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, place: str) -> str:
        """Spelling of a file's name; a link in its place is not followed."""
        if not os.path.isabs(place):
            return place
        folder, name = os.path.split(place)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder).rstrip("/")
        return _folded(f"{self._folders[folder]}/{name}")

    def of_folder(self, uri: str) -> str:
        """Spelling of a folder; links are followed."""
        place = located(uri)
        return _folded(os.path.realpath(place).rstrip("/")) if os.path.isabs(place) else place

    def of_input(self, place: str) -> set[str]:
        """Spellings of a file that is read: its name, and where a link in its place leads."""
        if os.path.isabs(place) and os.path.islink(place):
            return {self.of(place), _folded(os.path.realpath(place))}
        return {self.of(place)}


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def inode_of(place: str) -> Inode | None:
    """What tells a file of this machine from all others, links followed; None if there is none."""
    try:
        found = os.stat(place) if os.path.isabs(place) else None
    except (OSError, ValueError):
        return None
    return None if found is None else (found.st_dev, found.st_ino)
