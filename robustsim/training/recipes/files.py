"""Recipes in files: the bundled ones and the user's own, one built on another, with changes from the command line."""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias, Union

import yaml
from pydantic import BaseModel, ValidationError

from robustsim.encoders.card import did_you_mean
from robustsim.errors import InputError, RecipeError
from robustsim.training.recipes.recipe import FinetuneRecipe, TrainRecipe

Recipe: TypeAlias = Union[TrainRecipe, FinetuneRecipe]

KINDS: dict[str, type[TrainRecipe] | type[FinetuneRecipe]] = {"adversarial": TrainRecipe, "2afc": FinetuneRecipe}

# Where a value came from: a file and its line, or the command line.
_Key: TypeAlias = tuple[str | int, ...]
_Places: TypeAlias = dict[_Key, str]

# Sections whose keys belong to what their name says, so that a word alone can stand for them.
_NAMED = ("method", "adapter")
# Two ways to say how long; who says the one takes back the other.
_LENGTHS = {"steps": "epochs", "epochs": "steps"}


def list_recipes() -> list[str]:
    """Names of the bundled recipes, sorted."""
    return sorted(_bundled())


def load_recipe(name: "str | os.PathLike[str]", changes: Sequence[str] = ()) -> Recipe:
    """A recipe, checked, with everything that it is built on.

    Args:
        name: a bundled recipe ([`list_recipes`][robustsim.training.list_recipes]), or a file that ends in `.yaml` or
            `.yml`.
        changes: `key=value`, the key with dots (`attack.eps=2/255`), the value as YAML. Where steps are set, epochs
            no longer count, and the other way round; another method begins with its own options.

    Raises:
        InputError: no such recipe, the nearest names are given; a change that is no `key=value`.
        RecipeError: unknown keys or values that do not fit; the message names the file, the line and the nearest key.
    """
    data, places = _read(os.fspath(name), {})
    for change in changes:
        data = _set(data, places, change)
    return _build(data, places, os.fspath(name))


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as YAML with every value written out; [`load_recipe`][robustsim.training.load_recipe] reads it back."""
    values = recipe.model_dump(mode="json", exclude={"base"}, exclude_none=True)
    order = ["name", "description", "kind", "encoder", *values]
    text: str = yaml.safe_dump({key: values[key] for key in order if key in values}, sort_keys=False, width=100)
    return text


# -- reading


def _bundled() -> dict[str, Any]:
    folder = files("robustsim.training").joinpath("recipes")
    return {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _read(name: str, above: Mapping[str, str]) -> tuple[dict[str, Any], _Places]:
    """A recipe over its bases; `above` are those that are built on this one, by identity, as they were spelled."""
    bundled = _bundled()
    if name in bundled:
        text, where, short = bundled[name].read_text(encoding="utf-8"), f"recipe {name!r}", name
    elif _is_file(name):
        text, where, short = _text(name), name, Path(name).stem
    else:
        hint = did_you_mean(name, list(bundled)) or ";"
        raise InputError(
            f"no recipe is called {name!r}{hint} `robustsim recipes` lists them, and a file must end in .yaml"
        )
    places: _Places = {}
    data = _parse(text, where, places)
    if not isinstance(data, dict):
        raise RecipeError(f"{where} holds no keys: a recipe is a mapping, such as `encoder: clip-vit-b-32`")
    data.setdefault("name", short)
    base = data.get("base")
    if base is None:
        return data, places
    here = places[("base",)]
    if not isinstance(base, str):
        raise RecipeError(f"{here}: base must be the name of a recipe or a file, not {base!r}")
    if name not in bundled and _is_file(base):
        base = os.fspath(Path(name).parent / base)  # beside the file that names it
    so_far = {**above, _identity(name): name}
    if _identity(base) in so_far:
        raise RecipeError(f"{here}: the recipe is built on itself: {' -> '.join((*so_far.values(), base))}")
    try:
        below, from_below = _read(base, so_far)
    except InputError as error:
        raise RecipeError(f"{here}: base: {error}") from None
    below.pop("description", None)
    return _over(below, data), {**from_below, **places}


def _identity(name: str) -> str:
    return os.path.realpath(name) if _is_file(name) else name


def _text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the recipe {name!r}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"cannot read the recipe {name!r}: it is no text in UTF-8") from None


def _parse(text: str, where: str, places: _Places) -> Any:
    """YAML as plain data; the place of each value is entered."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _plain(node, places, where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        told = [getattr(error, key, None) for key in ("context", "problem")]
        reason = ", ".join(part for part in told if part) or " ".join(str(error).split())
        raise RecipeError(f"{where}{line} is not valid YAML: {reason}") from None
    except RecursionError:
        raise RecipeError(f"{where} is not valid YAML: it is nested too deeply") from None


def _plain(node: Any, places: _Places, where: str, key: _Key = ()) -> Any:
    """A YAML node as plain data, the line of each value noted."""
    places[key] = _line(where, node)
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for name_node, value_node in node.value:
            here = _line(where, name_node)
            if not isinstance(name_node, yaml.ScalarNode):
                raise RecipeError(f"{here}: a key must be a word, not a list or a mapping")
            name = str(name_node.value)
            if name in out:
                raise RecipeError(f"{here}: the key {name!r} is there twice")
            inner = (*key, name)
            out[name] = _plain(value_node, places, where, inner)
            places[inner] = here
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, places, where, (*key, index)) for index, item in enumerate(node.value)]
    return yaml.SafeLoader("").construct_object(node)


def _line(where: str, node: Any) -> str:
    return f"{where}, line {node.start_mark.line + 1}"


# -- one over another


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One recipe over another, key by key; another method takes none of the options of the one below."""
    out = dict(below)
    for key, other in _LENGTHS.items():
        if key in above and other not in above:
            out.pop(other, None)
    for key, value in above.items():
        mine, theirs = _spelled_out(key, value), _spelled_out(key, below.get(key))
        if isinstance(mine, dict) and isinstance(theirs, dict):
            anew = key in _NAMED and "name" in mine and mine["name"] != theirs.get("name")
            mine = mine if anew else _joined(theirs, mine)
        out[key] = mine
    return out


def _joined(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another, at every depth."""
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _joined(out[key], value) if both else value
    return out


def _spelled_out(key: str, value: Any) -> Any:
    return {"name": value} if key in _NAMED and isinstance(value, str) else value


def _set(data: dict[str, Any], places: _Places, change: str) -> dict[str, Any]:
    """The recipe with `key=value` from the command line."""
    key, equals, text = (part.strip() for part in change.partition("="))
    if not equals or not key:
        raise InputError(f"--set wants key=value, such as attack.eps=2/255, not {change!r}")
    where, names = f"--set {change}", tuple(key.split("."))
    if names == ("base",):
        raise InputError(f"{where}: a recipe keeps its base: name the other recipe in the place of this one")
    inside: _Places = {}
    try:
        value = _parse(text, where, inside)
    except RecipeError as error:
        raise InputError(f"{error}; put text with a colon or a bracket in quotes") from None
    here: Any = _spelled_out(names[0], data.get(names[0]))
    for depth, name in enumerate(names[1:], 1):
        if here is not None and not isinstance(here, dict):
            raise InputError(f"{where}: {'.'.join(names[:depth])} is {here!r}, and has no keys below it")
        here = (here or {}).get(name)
    for name in reversed(names[1:]):
        value = {name: value}
    for depth in range(1, len(names)):
        places.setdefault(names[:depth], where)
    places.update({(*names, *rest): where for rest in inside})
    places[names] = where
    return _over(data, {names[0]: value})


# -- checking


def _build(data: dict[str, Any], places: _Places, name: str) -> Recipe:
    kind = data.get("kind", "adversarial")
    if not isinstance(kind, str) or kind not in KINDS:
        where = places.get(("kind",), name)
        raise RecipeError(f"{where}: kind is {kind!r}; it is one of {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate(data)
    except ValidationError as error:
        lines = [_explain(one, places, KINDS[kind], name) for one in error.errors()]
        raise RecipeError("; ".join(lines)) from None


def _explain(error: Any, places: _Places, model: type[BaseModel], name: str) -> str:
    """One problem: where it is, what was seen, and the nearest key."""
    key: _Key = tuple(error["loc"])
    nearest = key
    while nearest and nearest not in places:
        nearest = nearest[:-1]
    where = places.get(nearest, f"recipe {name!r}")
    spelled, kind, seen = ".".join(map(str, key)), error["type"], error.get("input")
    if kind == "extra_forbidden":
        return f"{where}: unknown key {spelled!r}{_instead(key, model)}"
    if kind == "missing":
        return f"{where}: {spelled!r} is missing"
    if kind == "value_error":
        return f"{where}: {spelled + ': ' if spelled else ''}{error['ctx']['error']}"
    if kind == "model_type":
        return f"{where}: {spelled} must have keys of its own below it, and is {seen!r}"
    told = error["msg"].removeprefix("Input ").replace("valid tuple", "list")
    for detail in (", unable", ", got"):
        told = told.partition(detail)[0]
    return f"{where}: {spelled} {told}, not {seen!r}"


def _instead(key: _Key, model: type[BaseModel]) -> str:
    """What may have been meant by an unknown key."""
    known = _keys(model, key[:-1])
    for kind, other in KINDS.items():
        if len(key) == 1 and other is not model and key[0] in other.model_fields:
            return f": it belongs to recipes of the kind {kind}"
    return did_you_mean(str(key[-1]), known) or "; known: " + ", ".join(known)


def _keys(model: Any, path: _Key) -> list[str]:
    """The keys that a section may have."""
    for step in path:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel))
    return list(model.model_fields)
