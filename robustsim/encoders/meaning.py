"""What a distance of a model means, in the words that every command and every page has."""

from robustsim.encoders.card import EncoderCard


def explain(card: EncoderCard, squared: bool) -> str:
    """What a distance of this model means, in words."""
    formula, most = ("1 - similarity", "2") if squared else ("sqrt(1 - similarity)", "1.414")
    lines = [
        f"distance = {formula} by {card.name!r}: 0 is identical to it, {most} as different as can be. It ranks "
        "pairs seen by one model; numbers of two models do not compare."
    ]
    if card.method is None:
        lines.append(
            f"The card of {card.name!r} names no training against tampering: pixels changed on purpose can move this "
            "number."
        )
    else:
        lines.append(f"{card.name!r} was trained to hold against tampering ({card.method}, {card.threat}).")
    return "\n".join(lines)


def without_calibration(card: EncoderCard) -> str:
    """What to do about a model whose card does not say what its distances mean."""
    return (
        f"What distances of {card.name!r} mean was not measured: `robustsim calibrate MODEL --data DIR -o FOLDER` "
        "does, on a folder of photographs."
    )
