"""`robustsim index`: an index of the pictures in folders."""

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustsim.cli import output
from robustsim.cli.engine import Engine, EngineOption, load_hybrid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from robustsim.search import Index

ViewsOption = Annotated[
    str | None,
    typer.Option(
        "--views",
        metavar="KIND,...",
        help="Beside the whole: mirror, trim, frames, alpha, thumbnail, tiles, or all; each costs embeddings.",
    ),
]
ByOption = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        metavar="LINE",
        help="What compares: a model of the index, phash, or all; repeatable, any of them finds.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Have a Ray cluster do it: its address, auto for the one that is running here, local for one of its own.",
    ),
]
IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="Only pictures with this label.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Only pictures of this tenant.")]


def kinds(views: str | None) -> list[str]:
    """The names in `--views`."""
    return [] if views is None else [name for name in views.split(",") if name]


def index(
    index: IndexArgument,
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...",
            help="Folders of images; folders in them count too. With --ray also URLs (s3://...) and .tar files.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help=f"What embeds, as for `embed`; {output.DEFAULT_MODEL} for a new index, else its own."
        ),
    ] = None,
    device: output.DeviceOption = None,
    engine: EngineOption = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="MODEL",
            help="A further model of a new index, as lite-clean, or where one of an old index is; repeatable.",
        ),
    ] = None,
    views: ViewsOption = None,
    label: Annotated[
        str | None, typer.Option("--label", help="What is kept with the pictures; those that are there get it too.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Whose pictures these are.")] = None,
    ray: RayOption = None,
    sync: Annotated[bool, typer.Option("--sync", help="Remove what is gone from the folders, too.")] = False,
    remove_all: Annotated[
        bool, typer.Option("--remove-all", help="With --sync, even if nothing of a folder is left in the index then.")
    ] = False,
    follow_links: output.FollowLinksOption = False,
    strict: output.StrictOption = False,
    as_json: output.JsonOption = False,
) -> None:
    """Add the pictures of folders to an index, and make it if it is not there.

    What is there already is not embedded again: the same command brings an index up to date, and continues an
    interrupted run.
    """
    from dataclasses import asdict
    from functools import partial

    from tqdm import tqdm

    from robustsim.errors import OutputError
    from robustsim.images import find_images
    from robustsim.search import Index
    from robustsim.search.storage.seal import NAME

    if remove_all and not sync:
        raise typer.BadParameter("--remove-all goes with --sync")
    engine = engine_on_ray(engine, ray)
    total = None if ray else sum(1 for folder in folders for _ in find_images(folder, follow_links=follow_links))
    opened = None
    if not (index / NAME).exists():
        try:
            load = partial(load_hybrid, device=device, engine=engine)
            opened = Index.create(index, model or output.DEFAULT_MODEL, also=also or (), views=kinds(views), load=load)
        except OutputError:
            if not (index / NAME).exists():
                raise  # else another process was the first to make it
    if opened is None:
        opened = open_index(index, model, also, device, engine)
        _check_views(opened, kinds(views) if views is not None else None)
    output.settle(opened.card)
    output.tell_cropping(opened.card)
    reports = []
    with on_ray(opened, ray) as opened, tqdm(total=total, unit=" images", disable=True if as_json else None) as bar:
        update = partial(opened.sync, remove_all=remove_all) if sync else opened.add
        for folder in folders:
            reports.append(
                update(
                    folder,
                    label=label,
                    tenant=tenant,
                    follow_links=follow_links,
                    progress=bar.update,
                    on_error=lambda error: bar.write(f"skipped: {error}", file=sys.stderr),
                )
            )
    for report in reports:
        output.tell_passed_over(report.passed_over)
    counts = {
        name: sum(getattr(report, name) for report in reports)
        for name in ("added", "replaced", "unchanged", "removed", "relabelled", "failed")
    }
    if as_json:
        output.print_json(
            {
                "index": str(index),
                **counts,
                "folders": [
                    {"folder": str(folder), **asdict(report)} for folder, report in zip(folders, reports, strict=True)
                ],
            }
        )
    output.note(", ".join(f"{count} {name}" for name, count in counts.items() if name != "failed") + f" in {index}")
    output.finish(counts["failed"], sum(counts.values()) - counts["failed"], strict)


def open_index(
    index: Path, model: str | None, also: list[str] | None, device: str | None, engine: Engine | None
) -> "Index":
    """An index that is there, with the models that are named, if any are."""
    from functools import partial

    from robustsim.search import Index

    load = partial(load_hybrid, device=device, engine=engine)
    return Index.open(index, load(model) if model else None, also=list(map(load, also or ())), load=load)


def engine_on_ray(engine: Engine | None, address: str | None) -> Engine | None:
    """Workers compute with torch, and so does who asks them: the same numbers to the bit."""
    if address is not None and engine == "onnx":
        raise typer.BadParameter("with --ray, torch computes: leave --engine onnx out")
    return engine if address is None else "torch"


@contextmanager
def on_ray(index: "Index", address: str | None) -> "Iterator[Index]":
    """The index, whose work a Ray cluster does, if it has an address."""
    if address is None:
        yield index
        return
    from robustsim.search.scale import RayRunner, SpreadIndex

    with RayRunner(address) as runner:
        yield SpreadIndex(index, runner)


def _check_views(index: "Index", views: list[str] | None) -> None:
    """What an index is made with stays: pictures that are there already were embedded by it alone."""
    from robustsim.errors import InputError
    from robustsim.images import check_views

    if views is not None and check_views(views) != index.views:
        kept = ", ".join(index.views) or "none beside the whole"
        raise InputError(f"the index {index.path!r} keeps other views ({kept}): --views is for a new index")
