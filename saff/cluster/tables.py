"""The paper's tables and figures on a VOC tree: every row of Tables 1 and 2, Figures 2 and 3."""

import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saff import layout, metrics
from saff.arrays import AnyArray
from saff.backends import modules_of
from saff.cluster.labels import label_corpus
from saff.cluster.mapping import map_parts
from saff.cluster.pipeline import Scale
from saff.cluster.predictions import predict_corpus
from saff.cluster.resources import start_ray
from saff.cluster.training import train_network
from saff.config import Config, default, paper
from saff.errors import SettingsError
from saff.evaluation import evaluate
from saff.layout import Stage
from saff.rows import decode_map, original, rows_of
from saff.shards import Row
from saff.storage import Folder
from saff.truth import Masks, Truth, read_mask

EXAMPLES = 6  # rows of Figure 3: two best, two in the middle, two worst
EXAMPLE_COLUMNS = ["image_id", "uri", "sha256", "height", "width", "confidence"]


class Method(NamedTuple):
    """One way to label images, and what the paper reports for it (max F)."""

    name: str
    config: Config
    train: float | None
    """Labels of train."""
    train_network: float | None
    """Predictions of train by a network that has learnt from the labels."""
    val_network: float | None
    """Predictions of val by that network."""


def methods() -> dict[str, Method]:
    """The methods of the paper's tables, and the recommended one, by the name of their run."""

    def alone(column: int) -> Config:
        """One cue as it is: no superpixel is a seed, so the prior weights stay."""
        first, second, third, fourth = (float(c == column) for c in range(4))
        return dataclasses.replace(
            paper(),
            prior=(first, second, third, fourth),
            background_below=0.0,
            foreground_above=1.0,
        )

    unbalanced = dataclasses.replace(paper(), balance=False)
    return {
        "saliency": Method("saliency", alone(2), 0.6383, None, 0.6388),
        "cam": Method("class activation", alone(0), 0.6044, None, 0.5828),
        "saff": Method("SAFF", unbalanced, 0.6635, 0.6745, 0.6592),
        "saff_balance": Method("SAFF + balance", paper(), 0.6703, 0.6863, 0.6725),
        "default": Method("saff default()", default(), None, None, None),
    }


@dataclass(frozen=True, slots=True)
class VocTree:
    """A VOCdevkit/VOC2012 folder.

    Attributes
    ----------
    root : Path
        With ``JPEGImages``, ``SegmentationClass``, perhaps ``SegmentationClassAug``, and
        ``ImageSets/Segmentation``.
    """

    root: Path

    def __post_init__(self) -> None:
        """Refuse a folder that is no such tree."""
        wanted = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt")
        missing = [name for name in wanted if not (self.root / name).exists()]
        if missing:
            raise SettingsError(
                f"{self.root} is no VOC tree: it has no {', no '.join(missing)}; name the folder "
                "VOCdevkit/VOC2012"
            )

    @property
    def masks(self) -> str:
        """Folder of the masks; the augmented ones where they are."""
        augmented = self.root / "SegmentationClassAug"
        return str(augmented if augmented.is_dir() else self.root / "SegmentationClass")

    def ids(self, split: str) -> list[str]:
        """Ids of ``"train"`` (with the augmented masks: all that are not of val) or ``"val"``."""
        val = self._listed("val")
        if split == "val":
            return val
        augmented = self.root / "SegmentationClassAug"
        if not augmented.is_dir():
            return self._listed("train")
        held_out = {*val}
        return sorted(p.stem for p in augmented.glob("*.png") if p.stem not in held_out)

    def _listed(self, name: str) -> list[str]:
        path = self.root / "ImageSets" / "Segmentation" / f"{name}.txt"
        return path.read_text().split() if path.exists() else []

    def rows(self, split: str) -> Iterator[Row]:
        """Manifest rows of a split."""
        for image_id in self.ids(split):
            name = f"{image_id}.jpg"
            yield {"image_id": name, "uri": str((self.root / "JPEGImages" / name).absolute())}


class Figures(NamedTuple):
    """What was measured of one row of a table."""

    name: str
    published: float | None
    summary: Row
    curve: metrics.Curve


def make_tables(
    voc: Path,
    output: Folder,
    network: Config,
    *,
    scale: Scale | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Run every row of the tables and write ``tables.md`` with its figures; resumable.

    Parameters
    ----------
    voc : Path
        A VOCdevkit/VOC2012 folder, with or without the augmented masks.
    output : Folder
        Each method's run is ``runs/NAME`` in it.
    network : Config
        Its sections ``training`` and ``inference`` hold for the networks of all methods.
    scale : Scale, optional
        Workers and GPUs.
    say : callable
        Called with a line after each row.

    Returns
    -------
    uri : str
        Of ``tables.md``.
    """
    tree, scale, batch = VocTree(voc), scale or Scale(), network.training.batch_size
    start_ray()
    scale.of_training(batch)  # refused now
    has_val = bool(tree.ids("val"))
    train: list[Figures] = []
    val: list[Figures] = []
    for key, method in methods().items():
        run = output / "runs" / key
        source = str(voc.absolute())
        label_corpus(source, tree.rows("train"), run, method.config, patience=scale.patience)
        train.append(_measured(run, Stage.PSEUDO_LABELS, tree, method.name, method.train))
        say(_line(train[-1]))
        train_network(run, network.training, **scale.of_training(batch))
        how = scale.of_inference(batch) | {"allow_code": modules_of(network.training.network)}
        predict_corpus(run, run, network, **how)
        name = f"{method.name} + network"
        train.append(_measured(run, Stage.PREDICTIONS, tree, name, method.train_network))
        say(_line(train[-1]))
        if has_val:
            unseen = run / "val"
            new = (source, tree.rows("val"))
            predict_corpus(unseen, run, network, source=new, **how)
            val.append(_measured(unseen, Stage.PREDICTIONS, tree, name, method.val_network))
            say(_line(val[-1]))
    curves = {figures.name: figures.curve for figures in train}
    output.write("figure2.svg", metrics.curve_svg(curves).encode())
    output.write("figure3.png", examples(output, tree))
    settings = network.training
    trained_by = f"{settings.network}, {settings.steps:,} steps of {settings.batch_size}"
    text = _page(train, val, trained_by)
    output.write("tables.md", text.encode())
    return output.uri + "/tables.md"


def _measured(
    run: Folder, stage: str, tree: VocTree, name: str, published: float | None
) -> Figures:
    summary = evaluate(run, tree.masks, "voc", stage, map_parts=map_parts)
    table = np.genfromtxt(
        io.BytesIO(layout.evaluation(run, stage).read("curve.csv")), delimiter=",", names=True
    )
    return Figures(name, published, summary, metrics.Curve(table["precision"], table["recall"]))


def _line(figures: Figures) -> str:
    return f"{figures.name}: max F {figures.summary['mean_pr']['max_f']:.4f}"


def _page(train: list[Figures], val: list[Figures], how: str) -> str:
    """Markdown of both tables."""
    sections = [
        "# Tables of arXiv 2005.10513",
        f"Maximum F-measure. Networks: {how}. A published figure stands beside ours where the "
        "paper has that row; its encoder, saliency, edges and image set are not the same.",
        "## Table 1: images that the networks have learnt from",
        _table(train),
        "![Precision and recall of every row](figure2.svg)",
        "![Examples, from the best to the worst](figure3.png)",
    ]
    if val:
        sections += ["## Table 2: images that no network has seen", _table(val)]
    return "\n\n".join(sections) + "\n"


def _table(rows: Iterable[Figures]) -> str:
    lines = [
        "| | paper | mean_pr | mean_f | max_f | IoU | MAE | images |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        of = row.summary
        ours = [f"{of[c]['max_f']:.4f}" for c in ("mean_pr", "mean_f", "max_f")]
        published = f"{row.published:.4f}" if row.published else ""
        figures = [published, *ours, f"{of['iou']:.4f}", f"{of['mae']:.4f}", f"{of['images']:,}"]
        lines.append(f"| {row.name} | {' | '.join(figures)} |")
    return "\n".join(lines)


# Figure 3


def examples(output: Folder, tree: VocTree) -> bytes:
    """Draw images from the best to the worst prediction of the last method, as PNG."""
    shown = [*methods()]
    last = output / "runs" / shown[-1]
    masks = Masks(tree.masks)
    found = sorted(_ious(last, masks))
    if not found:
        raise SettingsError(f"no mask in {tree.masks} belongs to an image that was predicted")
    middle, count = len(found) // 2, len(found)
    places = sorted({count - 1, count - 2, middle, middle - 1, 1, 0} & {*range(count)})[::-1]
    chosen = {found[place][1]: found[place][0] for place in places[:EXAMPLES]}
    columns: list[tuple[str, dict[str, Row]]] = [
        (methods()[key].name, _rows(output / "runs" / key, Stage.PSEUDO_LABELS, chosen))
        for key in shown
    ]
    columns.append(("+ network", _rows(last, Stage.PREDICTIONS, chosen)))
    return _draw(chosen, columns, masks)


def _ious(run: Folder, masks: Masks) -> Iterator[tuple[float, str]]:
    for row in rows_of(run, Stage.PREDICTIONS, EXAMPLE_COLUMNS):
        truth = _truth(masks, row)
        if truth is not None and truth.mask.any():
            mask, valid = truth
            kept = (decode_map(row, "confidence") >= metrics.HALF) & valid
            yield float((kept & mask).sum() / (kept | mask).sum()), row["image_id"]


def _truth(masks: Masks, row: Row) -> Truth | None:
    name = masks.find(row["image_id"])
    if row["confidence"] is None or name is None:
        return None
    return read_mask(masks.folder, name, "voc")


def _rows(run: Folder, stage: str, chosen: Iterable[str]) -> dict[str, Row]:
    wanted = {*chosen}
    rows = rows_of(run, stage, EXAMPLE_COLUMNS)
    return {row["image_id"]: row for row in rows if row["image_id"] in wanted}


def _draw(
    chosen: dict[str, float], columns: list[tuple[str, dict[str, Row]]], masks: Masks
) -> bytes:
    from matplotlib.figure import Figure  # here, not above: workers need not load it

    titles = ["image", "truth", *(name for name, _ in columns)]
    figure = Figure(figsize=(1.6 * len(titles), 1.35 * len(chosen)), layout="constrained")
    axes: Any = figure.subplots(len(chosen), len(titles), squeeze=False)
    for line, (image_id, iou) in enumerate(chosen.items()):
        any_row = columns[0][1][image_id]
        truth = _truth(masks, any_row)
        pictures: list[AnyArray | None] = [original(any_row), truth.mask if truth else None]
        pictures += [decode_map(rows[image_id], "confidence") for _, rows in columns]
        for axis, picture in zip(axes[line], pictures, strict=True):
            axis.set_axis_off()
            if picture is not None:
                axis.imshow(picture, cmap="gray", aspect="equal")
        axes[line][0].set_title(f"{image_id.removesuffix('.jpg')}, IoU {iou:.2f}", fontsize=6)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title if title != "image" else axis.get_title(), fontsize=7)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
