"""`robustsim detect`: is this picture of what is to be kept out, by the pictures that it is near to?"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Union

import typer

from robustsim.cli import banks, output
from robustsim.cli.index import ViewsOption, kinds
from robustsim.errors import ImageError

if TYPE_CHECKING:
    from robustsim.cli.pictures import Picture
    from robustsim.search import Detector, Verdict


def detect(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="What is judged; for - standard input.")],
    bank: banks.BankOption,
    safe: banks.SafeOption = None,
    within: banks.WithinOption = None,
    false_positives: banks.RateOption = None,
    votes: banks.VotesOption = 1,
    allow: banks.AllowOption = None,
    deny: banks.DenyOption = None,
    unknown: banks.UnknownOption = None,
    detector: banks.DetectorOption = None,
    laion_head: banks.LaionOption = None,
    laion_model: banks.LaionModelOption = None,
    views: ViewsOption = None,
    model: banks.ModelOption = None,
    device: output.DeviceOption = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a line of JSON for each picture, and nothing else, on standard output."),
    ] = False,
) -> None:
    """Judge pictures by the banks that their nearest neighbours are in.

    The exit code is the decision: 0 if nothing is flagged, 1 if anything is, 2 for an error. A picture that cannot be
    read is told, the others are judged, and the exit code is 2.
    """
    wanted = banks.Wanted(
        bank, safe, within, false_positives, votes, allow or (), deny or (), unknown, detector or (), laion_head,
        laion_model, kinds(views), model, device,
    )  # fmt: skip
    wanted.check()
    bad, flagged, rows = 0, 0, []
    try:
        for name, found in _judged(wanted.make(), images):
            if isinstance(found, ImageError):
                output.report_bad(found)
                bad += 1
            else:
                flagged += found.flagged
                rows.append(_row(name, found))
            if as_json:
                told = {"error": str(found)} if isinstance(found, ImageError) else found.described()
                output.print_json({"picture": name, **told}, line=True)
        if rows and not as_json:
            output.print_table(("picture", "", "class", "by", "nearest of each bank"), rows)
        sys.stdout.flush()  # what cannot be written is an error too, and None where it is closed
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        output.tell_error(error)
        raise typer.Exit(2) from None  # and not 1, which is a decision
    if bad:
        output.note(f"{bad} of {bad + len(rows)} pictures could not be read, and were not judged")
        raise typer.Exit(2)
    if flagged:
        raise typer.Exit(1)


def _judged(detector: "Detector", images: list[str]) -> "Iterator[tuple[str, Verdict | ImageError]]":
    from robustsim.cli.pictures import open_pictures
    from robustsim.search.index.pictures import Loading, load_ahead

    encoded = bool(detector.views)

    def opened() -> "Iterator[tuple[str, Union[Picture, ImageError]]]":
        for name in dict.fromkeys(images):
            try:
                yield name, open_pictures([name], encoded=encoded)[name]
            except ImageError as error:
                yield name, error

    def load(one: "tuple[str, Union[Picture, ImageError]]") -> "tuple[str, Loading]":
        name, picture = one
        try:
            return name, picture if isinstance(picture, ImageError) else detector.load(picture)
        except ImageError as error:
            return name, ImageError(str(error))  # without the traceback, which holds the half-decoded picture

    return detector.judge(load_ahead(load, opened(), detector.views), repr)


def _row(name: str, verdict: "Verdict") -> tuple[str, ...]:
    near = ", ".join(f"{bank} {some[0].distance:.4f}" for bank, some in verdict.evidence.items() if some)
    by = "; ".join(map(str, verdict.reasons))
    return name, "flagged" if verdict.flagged else "passes", verdict.bank or "unknown", by, near
