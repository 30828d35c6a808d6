"""Command by which a person goes through the results of a run: review."""

from typing import Annotated

import typer

from saff.cli.options import Output, PrivateOption, StageOption, access_of_run
from saff.config_files import read_named
from saff.errors import SettingsError, printable
from saff.layout import Stage
from saff.log import say
from saff.marks import Mark, add_marks, read_changes, read_marks, rejected
from saff.rows import rows_of
from saff.storage import Folder


def review(
    output: Output,
    stage: StageOption = Stage.PSEUDO_LABELS,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGE_ID", help="Mark an image as accepted; repeat for more."),
    ] = None,
    reject: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGE_ID", help="Mark an image as rejected; repeat for more."),
    ] = None,
    marks: Annotated[
        str | None,
        typer.Option(
            help="CSV file of marks to take in, with the columns image_id and mark: the ranking "
            "with accepted or rejected filled in."
        ),
    ] = None,
    show: Annotated[
        int, typer.Option(min=0, help="Number of images to print, the least trustworthy first.")
    ] = 10,
    pages: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of pages to write on which a browser shows 200 images each, to accept or "
            "reject them.",
        ),
    ] = 0,
    private: PrivateOption = False,
) -> None:
    """Rank all images, the least trustworthy first, and take in what you accept or reject.

    Writes OUTPUT/review/ranking.parquet and ranking.csv. [bold]saff train[/] leaves out rejected
    images; [bold]saff export --only accepted[/] or [bold]not-rejected[/] follows the marks.
    """
    from saff import ranking, review_pages  # they take long to import

    run = Folder.at(output)
    changes: dict[str, Mark | None] = {}
    if marks is not None:
        changes = read_changes(read_named(marks, f"no list of marks at {marks}"), marks)
    changes |= dict.fromkeys(accept or (), Mark.ACCEPTED)
    if both := {*(accept or ())} & {*(reject or ())}:
        raise SettingsError(f"{both.pop()!r} is accepted and rejected; name it once")
    changes |= dict.fromkeys(reject or (), Mark.REJECTED)
    if changes:
        known = (row["image_id"] for row in rows_of(run, stage.value, ["image_id"]))
        add_marks(run, changes, known)
    found = read_marks(run)
    table = ranking.rank(run, stage.value, found)
    for place in ranking.write_ranking(run, table):
        typer.echo(printable(place))
    access = access_of_run(run, private=private)
    for page in review_pages.write_pages(run, stage.value, table, pages, access=access):
        typer.echo(printable(page))
    for line in ranking.head(table, show):
        say(printable(line))
    without = len(rejected(found))
    say(
        f"{table.num_rows:,} images: {len(found) - without:,} accepted, {without:,} rejected, "
        f"{table['error_kind'].drop_null().length():,} failed"
    )
