"""Fitting the models that saff ships, on Ray: images over the cores, folds side by side."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayTaskError

from saff import images
from saff.arrays import AnyArray
from saff.boundaries import MatchCounts, Scores, count_matches, summarise
from saff.cluster.resources import start_ray
from saff.edges import Edges, fitting as edge_fitting
from saff.edges.fitting import Drawn, EdgeFitting, read_boundaries
from saff.edges.learned import KIND as EDGE_KIND, to_arrays
from saff.errors import ImageError, SaffError, SettingsError
from saff.metrics import Evaluation
from saff.modelfile import pack
from saff.progress import Progress
from saff.saliency import fitting
from saff.saliency.drfi import KIND
from saff.saliency.fitting import Boosting, Example
from saff.shards import Row
from saff.storage import NO_FILE, Folder, read_bytes, with_brief_retries
from saff.threads import single_thread
from saff.truth import Masks, TruthFormat, read_mask

FEWEST = 2  # images a fold


class Fitted(NamedTuple):
    """A fitted model and how well it does on images it has not seen.

    Attributes
    ----------
    data : bytes
        Bytes of the model file.
    summary : dict
        As in metrics.json: cross-validated.
    left_out : list of str
        Images without a mask, or that cannot be read, with the reason.
    """

    data: bytes
    summary: Row
    left_out: list[str]


def fit_saliency(
    rows: Sequence[Row],
    truth: str,
    truth_format: TruthFormat,
    boosting: Boosting,
    *,
    folds: int = 5,
    notes: dict[str, str] | None = None,
) -> Fitted:
    """Fit the regressor of DRFI to all images, and cross-validate it.

    The images stay in Ray's object store as region features, about 0.8 MB each.

    Parameters
    ----------
    rows : sequence of dict
        Manifest rows.
    truth, truth_format : str
        Masks, as :func:`saff.evaluation.evaluate` takes them.
    boosting : Boosting
        Settings of the trees.
    folds : int
        Each is measured with trees that were grown on the others; drawn with ``boosting.seed``.
    notes : dict of str to str, optional
        What the file says of its data.

    Raises
    ------
    SettingsError
        If fewer than two images a fold can be used, or the masks hold only one class.
    """
    masks = match_masks(rows, truth)
    start_ray()
    folder = Folder.at(truth)
    read: Any = ray.remote(num_cpus=1, num_returns=2)(_read_example)
    pending = [
        read.remote(row, folder, mask, truth_format) for row, mask in zip(rows, masks, strict=True)
    ]
    usable, left_out = [], []
    with Progress("describe", len(pending)) as progress:
        for (example, reason), row, mask in zip(pending, rows, masks, strict=True):
            why = _get(reason)
            if why:
                left_out.append(f"{row['image_id']}: {why}")
            else:
                usable.append((example, mask))
            progress.advance(1, int(bool(why)))
    if len(usable) < FEWEST * folds:
        raise SettingsError(
            f"{len(usable)} of {len(rows)} images can be used, expected at least {FEWEST * folds} "
            f"for {folds} folds; {'; '.join(left_out[:3]) or 'name more images'}"
        )
    order = np.random.default_rng(boosting.seed).permutation(len(usable))
    held_out = [sorted(fold) for fold in np.array_split(order, folds)]
    examples = [example for example, _ in usable]
    grow: Any = ray.remote(num_cpus=1)(_grow)
    whole = grow.remote(boosting, *examples)
    trees = []
    for fold in held_out:
        rest = np.setdiff1d(np.arange(len(examples)), fold)
        trees.append(grow.remote(boosting, *(examples[index] for index in rest)))
    with Progress("fit", folds + 1, unit="models") as progress:
        for model in [*trees, whole]:
            _get(model)
            progress.advance(1, 0)
    ask: Any = ray.remote(num_cpus=1)(_ask)
    scores: list[Any] = [None] * len(examples)
    for model, fold in zip(trees, held_out, strict=True):
        for index in fold:
            scores[index] = ask.remote(model, examples[index])
    weigh: Any = ray.remote(num_cpus=1)(_fuse)
    fusion = _get(weigh.remote(len(scores), *scores, *examples))
    judge: Any = ray.remote(num_cpus=1)(_judge)
    judged = [
        judge.remote(s, fusion, e, folder, mask, truth_format)
        for s, (e, mask) in zip(scores, usable, strict=True)
    ]
    total = Evaluation(measures="f")
    for result in judged:
        total = total + _get(result)
    summary = total.summary() | {"folds": folds, "left_out": len(left_out)}
    said = {"images": str(len(usable)), "max_f": f"{summary['mean_pr']['max_f']:.4f}"}
    arrays = {**ray.get(whole), "fusion": np.asarray(fusion, np.float32)}
    return Fitted(pack(KIND, arrays, {**said, **(notes or {})}), summary, left_out)


def _get(reference: Any) -> Any:
    """Wait for a task; its SettingsError comes as it was raised there, without Ray's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SaffError):
            raise error.cause from None
        raise


def match_masks(rows: Sequence[Row], truth: str) -> list[str | None]:
    """Find the name of each image's mask, None for images without one.

    Raises
    ------
    SettingsError
        If there are no masks, or images share one or have several.
    """
    masks = Masks(truth)
    for row in rows:
        masks.claim(row["image_id"])
    count, named = masks.conflicts(5)
    if count:
        raise SettingsError(
            f"{count:,} images with a shared mask of {truth} or several: {'; '.join(named)}"
        )
    return [masks.find(row["image_id"]) for row in rows]


def _read_example(
    row: Row, folder: Folder, mask: str | None, truth_format: TruthFormat
) -> tuple[Example | None, str]:
    if mask is None:
        return None, "it has no mask"
    try:
        truth = read_mask(folder, mask, truth_format)
    except SettingsError as error:
        return None, f"its mask {mask} cannot be used: {error}"
    try:
        return fitting.make_example(images.decode(read_bytes(row["uri"])), *truth), ""
    except (ImageError, *NO_FILE) as error:  # the image's own fault, not the storage's
        return None, str(error)
    except SaffError:
        raise
    except ValueError as error:  # a mask of another size
        return None, str(error)


def _grow(boosting: Boosting, *examples: Example) -> dict[str, AnyArray]:
    return fitting.fit_trees(examples, boosting)


def _ask(arrays: dict[str, AnyArray], example: Example) -> AnyArray:
    return fitting.level_scores(fitting.trees_of(arrays), example)


def _fuse(count: int, *given: Any) -> AnyArray:
    return fitting.fit_fusion(given[:count], given[count:])


def _judge(
    scores: AnyArray,
    fusion: AnyArray,
    example: Example,
    folder: Folder,
    mask: str,
    truth_format: TruthFormat,
) -> Evaluation:
    return fitting.measure(scores, fusion, example, *read_mask(folder, mask, truth_format))


# Edges


def fit_edges(
    rows: Sequence[Row],
    boundaries: str,
    settings: EdgeFitting,
    notes: dict[str, str] | None = None,
) -> bytes:
    """Fit the edge network in this process, and give its model file.

    Parameters
    ----------
    rows : sequence of dict
        Manifest rows of the images to learn from.
    boundaries : str
        Folder or prefix of what people drew, ``.mat`` or ``.png``, named like the images.
    settings : EdgeFitting
        Steps, rates, augmentation.
    notes : dict of str to str, optional
        What the file says of its data.

    Raises
    ------
    SettingsError
        If an image has no boundaries or another size than they.
    """
    examples = [_drawn(row, boundaries) for row in rows]
    with Progress("fit", settings.steps, unit="steps") as progress:
        state = edge_fitting.fit_edges(
            examples,
            settings,
            on_step=lambda step, loss: progress.reach(step, f"loss {loss:.3f}"),
        )
    return pack(EDGE_KIND, to_arrays(state), {"images": str(len(rows)), **(notes or {})})


def measure_edges(edges: Edges, rows: Sequence[Row], boundaries: str) -> Scores:
    """Measure an edge back end on images with boundaries, over the cluster.

    Parameters
    ----------
    edges : Edges
        Sent to every node.
    rows, boundaries
        As :func:`fit_edges` takes them.
    """
    start_ray()
    count: Any = ray.remote(num_cpus=1)(_count)
    shared = ray.put(edges)
    counts = [_get(c) for c in [count.remote(shared, row, boundaries) for row in rows]]
    return summarise(MatchCounts(*(np.stack(c) for c in zip(*counts, strict=True))))


def _drawn(row: Row, boundaries: str) -> Drawn:
    folder, stem = Folder.at(boundaries), os.path.splitext(row["image_id"])[0]
    for name in (f"{stem}.mat", f"{stem}.png"):
        if folder.exists(name):
            try:
                people = read_boundaries(folder.read(name))
            except ValueError as error:
                raise SettingsError(f"{name} of {boundaries}: {error}") from error
            with with_brief_retries(row["uri"]):
                drawn = Drawn(images.decode(read_bytes(row["uri"])), people)
            if drawn.people.shape[1:] != drawn.image.shape[:2]:
                raise SettingsError(
                    f"{name} of {boundaries} is {drawn.people.shape[1:]}, its image "
                    f"{drawn.image.shape[:2]}"
                )
            return drawn
    raise SettingsError(f"{row['image_id']} has no boundaries in {boundaries}: no {stem}.mat, .png")


def _count(edges: Edges, row: Row, boundaries: str) -> MatchCounts:
    drawn = _drawn(row, boundaries)
    with single_thread():
        return count_matches(edges(drawn.image), drawn.people)
