"""`robustsim models`: the catalogue."""

from typing import Annotated, Any

import typer

from robustsim.cli import output
from robustsim.encoders.card import EncoderCard, list_models, load_card


def models(
    pattern: Annotated[str, typer.Argument(help="A shell pattern, such as 'rclip-*'.")] = "*",
    as_json: output.JsonOption = False,
) -> None:
    """The named models: size, method, published scores, and whether their weights are here."""
    rows = [_row(load_card(name)) for name in list_models(pattern)]
    if as_json:
        output.print_json(rows)
        return
    header = ("name", "M values", "dim", "method", "NIGHTS clean / linf / l2", "BAPPS clean / linf / l2", "weights")
    output.print_table(
        header,
        [
            (
                row["name"] + (" (default)" if row["default"] else ""),
                f"{row['parameters'] / 1e6:.1f}" if row["parameters"] else "",
                str(row["embedding_dim"]),
                f"{row['method']} {row['threat']}" if row["method"] else "clean",
                _scores(row["scores"], "nights"),
                _scores(row["scores"], "bapps"),
                row["weights"],
            )
            for row in rows
        ],
        numbers=(1, 2),
    )
    typer.echo(
        "Scores are published ones: agreement with people in %, without attack, at linf 4/255 and at l2 3 "
        "(Croce et al. 2025, tables I and XIII)."
    )


def _scores(scores: dict[str, float], data: str) -> str:
    values = [scores.get(f"{data}_{kind}") for kind in ("clean", "linf", "l2")]
    return "" if None in values else " / ".join(f"{value:.1f}" for value in values)


def _row(card: EncoderCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "default": card.name == output.DEFAULT_MODEL,
        "parameters": card.parameters,
        "embedding_dim": card.embedding_dim,
        "method": card.method,
        "threat": card.threat,
        "repository": card.source.repo if card.source else None,
        "license": card.license,
        "scores": dict(card.scores),
        "weights": _weights(card),
    }


def _weights(card: EncoderCard) -> str:
    if card.source is None:
        return "bundled"
    from robustsim.encoders.hub import is_cached

    return "cached" if is_cached(card.source.repo, card.source.revision, card.weights_files) else "on the Hub"
