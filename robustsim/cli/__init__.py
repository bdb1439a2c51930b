"""The `robustsim` command: one file per command, heavy imports only inside the command that needs them."""

import gc
import io
import sys

import typer

from robustsim.cli import (
    attack,
    benchmark,
    calibrate,
    check,
    compare,
    convert,
    data,
    dedup,
    detect,
    embed,
    evaluate,
    explain,
    export,
    filtering,
    forget,
    index,
    info,
    invert,
    matrix,
    models,
    output,
    rates,
    search,
    train,
)
from robustsim.errors import RobustSimError

__all__ = ["app", "main"]

app = typer.Typer(
    name="robustsim",
    help="How similar do these images look? A perceptual metric that can be made to hold under tampering.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("compare")(compare.compare)
app.command("matrix")(matrix.matrix)
app.command("embed")(embed.embed)
app.command("index")(index.index)
app.command("search")(search.search)
app.command("dedup")(dedup.dedup)
app.command("detect")(detect.detect)
app.command("filter")(filtering.filter_folders)
app.command("rates")(rates.rates)
app.command("forget")(forget.forget)
app.command("check")(check.check)
app.command("attack")(attack.attack)
app.command("explain")(explain.explain)
app.command("invert")(invert.invert)
app.command("models")(models.models)
app.command("info")(info.info)
app.command("calibrate")(calibrate.calibrate)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("benchmark")(benchmark.benchmark)
app.command("train")(train.train)
app.command("finetune")(train.finetune)
app.command("recipes")(train.recipes)
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")


def main() -> None:
    """Run the command line. Exit codes: 0, 1 for a job that failed, 2 for wrong usage."""
    gc.disable()  # until the imports are done (load_metric): there is no garbage in them, only an eighth of their time
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be more than the terminal can show
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except RobustSimError as error:
        sys.stderr.write(f"robustsim: {error}\n")
        sys.exit(1)
    except OSError as error:  # a closed pipe (`robustsim ... | head`), a full disk
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"robustsim: cannot write the output: {error.strerror or error}\n")
        output.drop_output()
        sys.exit(1)
    finally:
        gc.enable()
