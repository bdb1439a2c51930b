"""From a name to a working encoder, and back into a folder."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from robustsim.encoders import timm_models
from robustsim.encoders.calibration import Calibration
from robustsim.encoders.card import FORMAT, EncoderCard, Head, card_of_repository, list_models, load_card
from robustsim.encoders.encoder import Encoder, build_encoder
from robustsim.encoders.finite import refuse_non_finite
from robustsim.encoders.heads import LORA_PREFIX, merge_lora
from robustsim.encoders.hub import Folder, HubRepository, Repository, publish
from robustsim.encoders.weights import read_weights, sha256, state_sha256, whole_file, write_weights
from robustsim.errors import CardError, CorruptFileError, InputError, OutputError, WeightsError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")


def load_encoder(
    name: "str | os.PathLike[str]",
    *,
    revision: str | None = None,
    cache_dir: "str | os.PathLike[str] | None" = None,
    local_files_only: bool = False,
    text: bool = False,
) -> Encoder:
    """An encoder with its weights, on the CPU, in eval mode and float32.

    Args:
        name: a catalogue name, a Hub id `org/repo` or `org/repo@revision`, or a folder, `~` for one's own
            included. A folder wins over a Hub id, a catalogue name over both (write `./name` for a folder of that
            name).
        revision: branch, tag or commit on the Hub; not together with `@revision`.
        cache_dir: where downloads are kept; huggingface_hub's cache if not given.
        local_files_only: use the cache alone.
        text: with the text tower of a CLIP model.

    Raises:
        ModelNotFoundError: no such name; the message has the nearest spellings.
        HubError: the Hub could not be used, see `robustsim.encoders.hub`.
        CardError, WeightsError: the files are not what they should be.
        InputError: the name is that of a file or no name at all, or a revision is given for what has none.
    """
    try:
        name = os.fsdecode(name)
    except TypeError:
        raise InputError(f"a model is named by a text or a path, not by {name!r}") from None
    # What the caller has set as the device of new tensors, meta perhaps, is not where weights are read.
    with torch.device("cpu"):
        return _load(name, revision, cache_dir, local_files_only, text)


def _load(
    name: str,
    revision: str | None,
    cache_dir: "str | os.PathLike[str] | None",
    local_files_only: bool,
    text: bool,
) -> Encoder:
    if name not in list_models():
        name = os.path.expanduser(name)
        if os.path.isfile(name):
            raise InputError(_about_file(Path(name)))
    here = os.path.isdir(name) and name not in list_models()
    if revision is not None and (here or (name in list_models() and load_card(name).source is None)):
        raise InputError(f"{name!r} is {'a folder' if here else 'bundled'} and has no revisions: leave revision out")
    if name in list_models():
        card = load_card(name)
        if card.source is None:
            with as_file(files("robustsim.encoders").joinpath("bundled").joinpath(name)) as root:
                return _load_folder(Folder(root), card, text=text)
        hub = HubRepository(
            card.source.repo,
            revision or card.source.revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return _load_published(hub, card, text=text)
    if here:
        return _load_repository(Folder(Path(name)), None, text=text)
    if not _HUB_ID.match(name):
        load_card(name)  # raises, with the nearest spellings
    repo, _, pinned = name.partition("@")
    if pinned and revision:
        raise CardError(f"the revision is given twice, in {name!r} and as revision={revision!r}")
    found = HubRepository(repo, pinned or revision or "main", cache_dir=cache_dir, local_files_only=local_files_only)
    return _load_repository(found, card_of_repository(repo), text=text)


def _about_file(path: Path) -> str:
    """What to do with a file where a model's name is wanted."""
    from robustsim.encoders import clip

    folder = os.fspath(path.parent)
    if path.name == WEIGHTS or any((path.parent / name).is_file() for name in (CONFIG, clip.CONFIG)):
        return f"{os.fspath(path)!r} is a file; a model is its folder: pass {folder!r}"
    return (
        f"{os.fspath(path)!r} is a file; a model is a folder with {CONFIG} and {WEIGHTS}. `robustsim convert "
        f"{os.fspath(path)} -o FOLDER --base MODEL` makes one of a checkpoint"
    )


def _load_repository(repo: Repository, card: EncoderCard | None, *, text: bool) -> Encoder:
    """An encoder from whatever layout a repository or folder has."""
    if card is not None:
        return _load_published(repo, card, text=text)
    from robustsim.encoders import clip

    own = repo.file(CONFIG)
    config = _read_json(own) if own is not None else {}
    if own is not None and config.get("format") == FORMAT:
        where = f"{CONFIG} of {repo.name!r}"
        return _load_folder(repo, EncoderCard.from_json(own.read_text(encoding="utf-8"), where=where), text=text)
    if path := repo.file(clip.CONFIG):
        return _load_published(repo, clip.card_from_config(repo.short_name, _read_json(path)), text=text)
    if own is None:
        repo.explain_absence(f"{CONFIG} or {clip.CONFIG}")
    encoder = _load_published(repo, timm_models.card_from_config(repo.short_name, config), text=text)
    # num_features is not always the width of what comes out (a head may widen it): only the model knows.
    size = encoder.card.preprocessing.size
    with torch.no_grad():
        width = encoder(torch.zeros(1, 3, size, size)).shape[-1]
    encoder.card = dataclasses.replace(encoder.card, embedding_dim=width)
    return encoder


def _load_folder(repo: Repository, card: EncoderCard, *, text: bool) -> Encoder:
    """Our own layout: `config.json` and `model.safetensors`, the names those of the encoder's state dict."""
    path = repo.file(WEIGHTS)
    if path is None:
        repo.explain_absence(WEIGHTS)
    _check_sum(path, card.weights_sha256)
    if text and not card.text and card.architecture.library == "open_clip":
        raise WeightsError(f"{repo.name!r} was saved without its text tower: load it without text=True")
    weights = read_weights(path, lambda key: text or not key.removeprefix(LORA_PREFIX).startswith("text."))
    if card.head.kind == "lora":
        weights = merge_lora(weights, card.head.scale)
        card = dataclasses.replace(card, head=Head())  # saved again, the weights have it in them
    encoder = build_encoder(dataclasses.replace(card, text=text), text=text)
    return fill(encoder, weights, os.fspath(path))


def _load_published(repo: Repository, card: EncoderCard, *, text: bool) -> Encoder:
    """OpenCLIP's and timm's Hub layouts."""
    checksum = card.source.sha256 if card.source is not None else None
    card = dataclasses.replace(card, text=text)
    if card.architecture.library == "open_clip":
        from robustsim.encoders import clip

        config = repo.file(clip.CONFIG)
        if config is not None:
            clip.check_config(card, _read_json(config), f"{clip.CONFIG} of {repo.name!r}")
        path = _first(repo, card.weights_files)
        _check_sum(path, checksum)
        encoder = build_encoder(card, text=text)
        weights = clip.adopt(read_weights(path, lambda key: text or key.startswith("visual.")))
        return fill(encoder, weights, f"{path.name} of {repo.name!r}")
    config = repo.file(timm_models.CONFIG)
    said = _read_json(config) if config is not None else {}
    if said.get("architecture", card.architecture.name) != card.architecture.name:
        raise WeightsError(
            f"{repo.name!r} holds a {said['architecture']!r}, the card {card.name!r} says {card.architecture.name!r}"
        )
    path = _first(repo, card.weights_files)
    _check_sum(path, checksum)
    encoder = build_encoder(card, text=text, classes=said.get("num_classes", 0), native_size=True)
    fill(encoder, timm_models.adopt(read_weights(path)), f"{path.name} of {repo.name!r}")
    trunk: Any = encoder.trunk
    timm_models.finish(trunk, card)
    return encoder


def _first(repo: Repository, names: tuple[str, ...]) -> Path:
    path = next(filter(None, map(repo.file, names)), None)
    if path is None:
        repo.explain_absence(" or ".join(names))
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CardError(f"{os.fspath(path)!r} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise CardError(f"{os.fspath(path)!r} holds no JSON object")
    return data


def _check_sum(path: Path, expected: str | None) -> None:
    if expected is not None and (found := sha256(path)) != expected:
        raise CorruptFileError(
            f"{os.fspath(path)!r} is not the file that the card names: its SHA-256 is {found[:12]}..., the card says "
            f"{expected[:12]}.... It is damaged, half-copied or replaced; fetch it anew"
        )


def fill(encoder: Encoder, weights: Mapping[str, Tensor], where: str) -> Encoder:
    """Copy weights into an encoder, every name accounted for.

    Raises:
        WeightsError: names missing or left over, or shapes that differ: it is another architecture; or values that are
            not finite.
    """
    wanted = encoder.state_dict()
    # Older files hold tables that are computed now: buffers, which the state dict leaves out.
    computed = {key for key, _ in encoder.named_buffers()} - wanted.keys()
    weights = {key: value for key, value in weights.items() if key not in computed}
    missing = sorted(wanted.keys() - weights.keys())
    extra = sorted(weights.keys() - wanted.keys())
    kinds = [
        f"{key} is {weights[key].dtype}, not {wanted[key].dtype}"
        for key in sorted(wanted.keys() & weights.keys())
        if _kind(weights[key]) != _kind(wanted[key])
    ]
    shapes = [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & weights.keys())
        if weights[key].shape != wanted[key].shape
    ]
    found = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("left over", extra),
            ("of another shape", shapes),
            ("of another kind", kinds),
        )
        if names
    ]
    if found:
        raise WeightsError(
            f"the weights in {where} do not fit {encoder.card.architecture.name!r}: {'; '.join(found)}. "
            "They belong to another architecture"
        )
    encoder.load_state_dict(weights, strict=True)
    # What arrived is looked at, not what came: a double may be too large for a float.
    refuse_non_finite(encoder.state_dict(), f"the weights in {where}")
    return encoder


def _kind(tensor: Tensor) -> str:
    """What cannot become another by a change of precision alone."""
    return "complex" if tensor.is_complex() else "floating" if tensor.is_floating_point() else "whole"


def save_encoder(encoder: Encoder, folder: "str | os.PathLike[str]", extra: Mapping[str, Tensor] | None = None) -> Path:
    """Write `config.json` and `model.safetensors`; [`load_encoder`][robustsim.encoders.load_encoder] reads them back
    bit for bit.

    Both are written beside their places first, and then put there, the weights before the card, which holds their
    checksum: a folder whose writing was interrupted never passes for whole.

    A calibration that was measured with other weights than these is left out.

    Args:
        encoder: what to save.
        folder: where; made if it is not there, its two files are replaced.
        extra: more tensors for the weights file (adapters that are merged at load).

    Raises:
        OutputError: a file cannot be written; what was there before stays.
    """
    root = Path(folder).expanduser()
    with whole_file(root / CONFIG) as card_file, whole_file(root / WEIGHTS) as weights_file:
        write_weights(weights_file, {**encoder.state_dict(), **(extra or {})})
        card = dataclasses.replace(
            encoder.card,
            source=None,
            weights_sha256=sha256(weights_file),
            calibration=None if extra else valid_calibration(encoder),
        )
        card_file.write_text(card.to_json(), encoding="utf-8")
    return root


def publish_encoder(encoder: Encoder, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Publish to a Hub repository, with a model card made from the encoder's; returns the commit's address.

    Args:
        encoder: what to publish.
        repo: "org/name"; made if it is not there.
        private: whether only its owners see it, if it is made.
        revision: branch to publish to.

    Raises:
        HubError: no token with the right to write (`HF_TOKEN`), or no network.
    """
    with TemporaryDirectory() as folder:
        root = save_encoder(encoder, folder)
        (root / "README.md").write_text(encoder.card.to_readme(repo), encoding="utf-8")
        return publish(root, repo, private=private, revision=revision, message="Upload with robustsim")


def image_sha256(encoder: Encoder) -> str:
    """What tells apart two encoders whose embeddings may differ, whatever text tower they have, by their weights and
    what is done to pixels before them: the `weights` of a calibration.
    """
    card = encoder.card
    before = json.dumps([dataclasses.asdict(card.preprocessing), card.mean, card.std])
    return hashlib.sha256(f"{state_sha256(encoder, without='text.', typed=False)} {before}".encode()).hexdigest()


def valid_calibration(encoder: Encoder) -> Calibration | None:
    """The card's calibration, if it was measured with these weights."""
    calibration = encoder.card.calibration
    return calibration if calibration is not None and calibration.weights == image_sha256(encoder) else None


def has_own_card(folder: "str | os.PathLike[str]") -> bool:
    """Whether a folder is a model of this library's own layout, which holds a card."""
    try:
        return bool(_read_json(Path(folder) / CONFIG).get("format") == FORMAT)
    except (OSError, CardError):
        return False


def save_calibration(folder: "str | os.PathLike[str]", calibration: Calibration, encoder: Encoder) -> None:
    """Write a calibration into the card of the folder that an encoder was loaded from, and leave its weights alone.

    Raises:
        CardError: the card cannot be understood.
        OutputError: the folder holds another model by now, or cannot be written; what was there stays.
    """
    path = Path(folder) / CONFIG
    card = EncoderCard.from_json(path.read_text(encoding="utf-8"), where=os.fspath(path))
    if card.weights_sha256 != encoder.card.weights_sha256 or calibration.weights != image_sha256(encoder):
        raise OutputError(f"{os.fspath(folder)!r} holds another model than the one that was measured: measure it anew")
    with whole_file(path) as temporary:
        temporary.write_text(dataclasses.replace(card, calibration=calibration).to_json(), encoding="utf-8")
