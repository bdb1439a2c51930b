"""The metric on ONNX Runtime: files of `robustsim export`, NumPy and Pillow in, NumPy out; torch is never imported."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from robustsim.encoders.calibration import Calibration
from robustsim.encoders.card import EncoderCard
from robustsim.encoders.export.files import INPUT, OUTPUT, Exported, check_sealed, read_metadata, read_sealed
from robustsim.encoders.export.session import open_session
from robustsim.errors import CardError, CorruptFileError, EncodingError, InputError, WeightsError
from robustsim.images.arrays import no_range, split_source, stream_arrays
from robustsim.images.fast import Decode, check_decode
from robustsim.vectors import NO_EMBEDDING, NOT_FINITE, are_embeddings, check_batch_size, check_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

_SQRT_HALF = np.float32(0.5**0.5)
_UNIT = 1e-5  # within this of 1, a length is left as it is


class OnnxMetric:
    """[`RobustSim`][robustsim.RobustSim] without torch: the same verbs, arguments and rules, on the CPU.

    Images are those of `RobustSim`; results are float32 arrays of the same shapes, and differ by rounding alone.
    Tensors of torch are taken as arrays; one that requires a gradient is refused, as there is none. Wherever an image
    is expected, an array of its embeddings may stand in.

    Args:
        model: the bytes of an exported file.
        what: what messages call it.
        batch_size: images per encoding.
        decode: `exact` or `fast`, as for `RobustSim`.

    Raises:
        WeightsError: they are none, are damaged, or were made from other weights than their card says.
        InputError: no such way to decode.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(
        self, model: bytes, what: str = "the model", *, batch_size: int = 32, decode: Decode = "exact"
    ) -> None:
        self.batch_size, self.decode = check_batch_size(batch_size), check_decode(decode)
        self._session = open_session(check_sealed(model, what), what)
        self.exported: Exported = read_metadata(self._session.get_modelmeta().custom_metadata_map, what)
        pixels, z = (ends[0].shape[1:] for ends in (self._session.get_inputs(), self._session.get_outputs()))
        size = self.card.preprocessing.size
        if pixels != [3, size, size] or z != [self.card.embedding_dim]:
            raise CorruptFileError(f"{what} makes {z} of {pixels}, and its card says otherwise: export it anew")

    @property
    def card(self) -> EncoderCard:
        """What the encoder is: architecture, preprocessing, provenance, licence."""
        return self.exported.card

    @property
    def calibration(self) -> Calibration:
        """What its distances mean: `metric.calibration.describe(d)` says it in words.

        Raises:
            CardError: the model's card holds none.
        """
        if self.card.calibration is None:
            raise CardError(f"what distances of {self.card.name!r} mean was not measured before it was exported")
        return self.card.calibration

    def preprocess(self, images: Any, *, input_range: tuple[float, float] = (0, 1)) -> "Array":
        """Images as the encoder sees them, (N, 3, S, S) in [0, 1]; see `RobustSim.preprocess`.

        Files and other 8-bit pictures give the same pixels as there, to the bit.

        Raises:
            ImageError: a file that cannot be read.
            InputError: a shape, type or range that is no image, or a tensor that requires a gradient.
        """
        return next(self._stream(_split(images), input_range))

    def embed(self, images: Any, *, input_range: tuple[float, float] = (0, 1)) -> "Array":
        """Unit-length embeddings, (N, D). Arguments and errors as for `preprocess`."""
        z, _ = self._encode((images,), input_range)
        return z[0]

    def embed_pixels(self, pixels: "Array") -> "Array":
        """Unit-length embeddings of images that `preprocess` returned: (N, 3, S, S) -> (N, D). No checks."""
        rows = [
            self._session.run([OUTPUT], {INPUT: pixels[start : start + self.batch_size]})[0]
            for start in range(0, len(pixels), self.batch_size)
        ]
        z: Array = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return z

    def __call__(self, a: Any, b: Any, *, squared: bool = False, input_range: tuple[float, float] = (0, 1)) -> "Array":
        """The same as `distance`."""
        return self.distance(a, b, squared=squared, input_range=input_range)

    def distance(self, a: Any, b: Any, *, squared: bool = False, input_range: tuple[float, float] = (0, 1)) -> "Array":
        """Distance of pairs, (N,) in [0, sqrt(2)], of N images, or 1, and N, or 1; identical ones give exactly 0.

        Raises:
            InputError: the counts differ and neither is 1; else as `preprocess`.
        """
        (u, v), same = self._encode((a, b), input_range)
        return _distance(u, v, same.get((0, 1)), squared)

    def similarity(self, a: Any, b: Any, *, input_range: tuple[float, float] = (0, 1)) -> "Array":
        """Cosine similarity of pairs, (N,) in [-1, 1]; identical images give exactly 1."""
        similarity: Array = np.float32(1) - self.distance(a, b, squared=True, input_range=input_range)
        return similarity

    def distance_matrix(
        self, a: Any, b: Any = None, *, squared: bool = False, input_range: tuple[float, float] = (0, 1)
    ) -> "Array":
        """Distance of every a to every b, (N, M), in N + M encodings; of every a to every a without b."""
        groups = [self._encode((group,), input_range, keep=True) for group in ((a,) if b is None else (a, b))]
        (u,), known = groups[0]
        (v,), others = groups[-1]
        keys, other_keys = known.get((0, 0)), others.get((0, 0))
        rows = []
        for place, row in enumerate(u):
            same = None if keys is None or other_keys is None else other_keys == keys[place]
            rows.append(_distance(row[None], v, same, squared))
        return np.stack(rows)

    def two_afc(self, reference: Any, left: Any, right: Any, *, input_range: tuple[float, float] = (0, 1)) -> "Array":
        """Two-alternative forced choice, (N,): 0 where left is nearer, 1 where right is, 0.5 where they tie exactly."""
        z, same = self._encode((reference, left, right), input_range)
        to_left, to_right = (_distance(z[0], z[side], same.get((0, side)), True) for side in (1, 2))
        tie = (to_left == to_right) | same.get((1, 2), np.zeros(1, dtype=bool))
        return np.where(tie, np.float32(0.5), (to_right < to_left).astype(np.float32))

    def _encode(
        self, groups: Sequence[Any], input_range: tuple[float, float], *, keep: bool = False
    ) -> "tuple[list[Array], dict[tuple[int, int], NDArray[Any]]]":
        """Unit embeddings of groups of N images, or of 1, and where two of them show the same pixels.

        With `keep`, of one group: at (0, 0), what tells its pictures apart.
        """
        z: list[Any] = [self._given(group) for group in groups]
        parts = {place: _split(group) for place, group in enumerate(groups) if z[place] is None}
        counts = [len(parts[place]) if z[place] is None else len(z[place]) for place in range(len(groups))]
        check_counts(counts)
        most, total = max(counts), sum(counts[place] for place in parts)
        # One image that stands against many is encoded once, before them; the rest goes through together.
        few = [place for place in parts if counts[place] < most]
        many = [place for place in parts if place not in few]
        if total <= self.batch_size:
            few, many, size = [], list(parts), max(most, 1)
        else:
            size = max(1, self.batch_size // max(1, len(many)))
        seen = {place: next(self._stream(parts[place], input_range)) for place in few}
        for place, pixels in seen.items():
            z[place] = self.embed_pixels(pixels)
        rows: dict[int, list[Any]] = {place: [] for place in many}
        same: dict[tuple[int, int], list[Any]] = {}
        for batch in zip(*(self._stream(parts[place], input_range, size) for place in many), strict=True):
            ends = np.cumsum([len(pixels) for pixels in batch])[:-1]
            embedded = self.embed_pixels(batch[0] if len(batch) == 1 else np.concatenate(batch))
            for place, found in zip(many, np.split(embedded, ends), strict=True):
                rows[place].append(found)
            seen.update(zip(many, batch, strict=True))
            if keep:
                same.setdefault((0, 0), []).append(_identities(batch[0]))
            for pair in combinations(parts, 2):
                if pair not in same or {*pair} & {*many}:
                    x, y = (seen[place] for place in pair)
                    same.setdefault(pair, []).append((x == y).all((1, 2, 3)))
        for place in many:
            z[place] = np.concatenate(rows[place])
        for one in z:
            if not (np.isfinite(one).all() and one.any(1).all()):
                raise EncodingError(NOT_FINITE)
        return z, {pair: np.concatenate(found) for pair, found in same.items()}

    def _given(self, images: Any) -> "Array | None":
        """Embeddings that stand in for images, (N, D); None where it is images."""
        array, size = _as_array(images), self.card.embedding_dim
        if array is images and not are_embeddings(array, size):
            return None
        if not isinstance(array, np.ndarray) or array.ndim not in (1, 2):
            return None
        lengths = np.linalg.norm(array.astype(np.float32), axis=-1, keepdims=True)
        if array.dtype.kind != "f" or array.shape[-1] != size or not np.allclose(lengths, 1, atol=NO_EMBEDDING):
            raise InputError(
                f"a tensor of shape {array.shape} is neither an image, (3, H, W) or (N, 3, H, W), nor an embedding of "
                f"{self.card.name!r}: floating point (N, {size}), of length 1"
            )
        found: Array = array.astype(np.float32) / np.where(np.abs(lengths - 1) < _UNIT, np.float32(1), lengths)
        return found.reshape(-1, size)

    def _stream(
        self, parts: list[Any], input_range: tuple[float, float], batch_size: int | None = None
    ) -> "Iterator[Array]":
        return stream_arrays(
            parts, self.card.preprocessing, input_range=input_range, batch_size=batch_size, decode=self.decode
        )


def from_onnx(path: "str | os.PathLike[str]", *, batch_size: int = 32, decode: Decode = "exact") -> OnnxMetric:
    """The metric in a file of `robustsim export --format onnx`, on ONNX Runtime; torch is not imported.

    Args:
        path: the file.
        batch_size: images per encoding.
        decode: `exact` or `fast`, as for `RobustSim`.

    Raises:
        InputError: no such way to decode.
        WeightsError: it is no such file, is damaged, or was made from other weights than its card says.
        MissingDependencyError: onnxruntime is not installed: `pip install "robustsim[fast]"`.
    """
    return OnnxMetric(read_sealed(path), repr(os.fspath(path)), batch_size=batch_size, decode=decode)


def bundled(name: str) -> OnnxMetric:
    """A bundled model; its ONNX form is made of its weights at the first time, and kept in the cache.

    Raises:
        MissingDependencyError: onnxruntime or onnx is not installed.
        WeightsError: the weights are damaged.
    """
    from robustsim.encoders.card import load_card
    from robustsim.encoders.export.making import bundled_model

    what = f"the ONNX form of {name!r}"
    with suppress(WeightsError, CardError):  # whatever is wrong with what is kept, it can be made anew
        kept = OnnxMetric(bundled_model(name), what)
        if kept.card == load_card(name):
            return kept
    return OnnxMetric(bundled_model(name, anew=True), what)


def _as_array(images: Any) -> Any:
    """A tensor of torch as an array, (3, H, W) as it is; anything else itself."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(images, torch.Tensor):
        return images
    if images.requires_grad:
        raise InputError(
            "a tensor that requires a gradient: a metric in ONNX has none to give; use tensor.detach(), or "
            "RobustSim.from_pretrained for a metric that can be differentiated"
        )
    images = images.cpu()
    return (images.float() if images.is_floating_point() else images).numpy()


def _split(images: Any) -> list[Any]:
    """One by one: files, bytes, PIL images, and float32 arrays (H, W, C)."""
    if isinstance(images, (list, tuple)):
        flat = [part for image in images for part in _split(image)]
        if not flat:
            raise InputError("got an empty list of images: pass at least one")
        return flat
    array = _as_array(images)
    if array is images:
        return split_source(images)
    if array.ndim not in (3, 4) or array.shape[-3] != 3 or 0 in array.shape:
        raise InputError(f"a tensor of shape {array.shape} is not an image: tensors are (3, H, W) or (N, 3, H, W)")
    if array.dtype.kind != "f" and array.dtype != np.uint8:
        raise InputError(no_range(array.dtype))
    return list(np.moveaxis(array.reshape(-1, *array.shape[-3:]), 1, -1))


def _distance(u: "Array", v: "Array", same: "NDArray[np.bool_] | None", squared: bool) -> "Array":
    """As `robustsim.distances.pair_distance`."""
    squares = np.square(u - v).sum(1)
    d = np.minimum(0.5 * squares, 2) if squared else np.minimum(np.sqrt(squares) * _SQRT_HALF, 2**0.5)
    found: Array = d.astype(np.float32)
    if same is not None:
        found = np.where(same, np.float32(0), found)
    return found


def _identities(pixels: "Array") -> "NDArray[Any]":
    """What tells pictures apart that are not kept: a digest of each, (N,)."""
    import hashlib

    return np.array([hashlib.blake2b((row + 0.0).tobytes(), digest_size=32).digest() for row in pixels])
