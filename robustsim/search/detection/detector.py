"""Judge pictures by the banks that they are near to: each is decoded and embedded once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustsim.encoders.card import EncoderCard
from robustsim.errors import ImageError, InputError
from robustsim.images.inputs import ImageSource, split_images
from robustsim.images.views.load import load_views
from robustsim.images.views.names import check_views
from robustsim.metric import ImagesOrEmbeddings, RobustSim
from robustsim.search.detection.banks import check_filled, nearest, share_model
from robustsim.search.detection.rule import Rule
from robustsim.search.detection.scores import ScoreDetector
from robustsim.search.detection.verdict import Neighbour, Verdict
from robustsim.search.index.index import Index
from robustsim.search.index.pictures import Embedded, Loading, embed_loaded, load_ahead, one_by_one

T = TypeVar("T")

_TOGETHER = 64  # pictures that the banks are asked for at a time


class Detector:
    """Which bank of pictures one belongs to, whether it is flagged, and by which evidence.

    ```python
    detector = Detector({"unsafe": Index.open("unsafe.index"), "safe": Index.open("safe.index")})
    verdict = detector.detect("upload.jpg")[0]
    print(verdict.bank, verdict.flagged, verdict.evidence["unsafe"][0])
    ```

    Answers are those of the banks as they are when they are first asked.

    Attributes:
        banks: by name.
        rule: what decides, with the distances of `false_positives`.
        detectors: what else may flag.
        views: which views of a picture are looked for, beside the whole.

    Args:
        banks: indexes of one model, by name; the names are the classes.
        rule: what decides; the nearest neighbour's bank, and all but `safe` flagged, if not given.
        detectors: what else may flag: `ScoreDetector`s, or functions that say what they take, for a threshold of 0.5.
        views: names of `robustsim.images.VIEWS`; a picture is as near as the nearest of its views. Detectors look at
            the whole.
        false_positives: in place of `within`: the distance of each bank within which lies at most such a share of
            pairs of different pictures, where the picture that is asked for is seen as one view and one more for each
            name of `views`. Views that are several each, such as tiles, and pictures of several frames are compared
            more often, and pass the rate.

    Raises:
        InputError: the rule does not fit the banks, the rate cannot be told, or two detectors have one name.
        SearchError: banks are of different models, or one is empty or damaged.
    """

    def __init__(
        self,
        banks: Mapping[str, Index],
        rule: Rule | None = None,
        detectors: Iterable[ScoreDetector | Callable[..., Any]] = (),
        *,
        views: Sequence[str] = (),
        false_positives: float | None = None,
    ) -> None:
        self.banks, self.views = dict(banks), check_views(views)
        chosen = Rule() if rule is None else rule
        if false_positives is not None:
            if chosen.within is not None:
                raise InputError("pictures count within a distance, or within what a rate allows: give one")
            if not self.banks:
                chosen.check(self.banks)
            views_of_one = 1 + len(self.views)  # tiles and frames may be more
            within = {
                name: bank.distance_at(false_positives, query_views=views_of_one) for name, bank in self.banks.items()
            }
            chosen = replace(chosen, within=within)
        chosen.check(self.banks)
        self.rule = chosen
        check_filled(self.banks)
        share_model(self.banks)
        self.detectors = tuple(one if isinstance(one, ScoreDetector) else ScoreDetector(one) for one in detectors)
        names = [one.name for one in self.detectors]
        if len(set(names)) < len(names):
            raise InputError(f"detectors are told apart by their names, and these are {', '.join(names)}")
        self._metrics = [self.metric]
        for one in self.detectors:
            one.check_metric(one.metric or self.metric)
            if one.metric is not None and one.metric not in self._metrics:
                self._metrics.append(one.metric)
        pixels = [one.preprocessing for one in self.detectors if one.takes == "pixels"]
        self._preprocessings = [*(metric.card.preprocessing for metric in self._metrics), *pixels]

    @property
    def metric(self) -> RobustSim:
        """What embeds for the banks."""
        return next(iter(self.banks.values())).metric

    @property
    def card(self) -> EncoderCard:
        """The card of the banks' model."""
        return next(iter(self.banks.values())).card

    def detect(self, images: ImagesOrEmbeddings) -> list[Verdict]:
        """What is known of each picture.

        Args:
            images: as for [`RobustSim.embed`][robustsim.RobustSim.embed]. Embeddings of the banks' model may stand in,
                a tensor (N, D), where neither views nor detectors of pixels or of other models are asked.

        Raises:
            ImageError: one cannot be read.
            InputError: one is no picture, or a detector failed.
            EncodingError: an embedding is not finite, or nothing but zeros.
        """
        if isinstance(images, Tensor) and images.ndim < 3:
            return self._of_embeddings(images)
        sources = one_by_one(split_images(images, as_rgb=False))
        numbered: Iterable[tuple[int, Any]] = enumerate(sources)

        def load(one: tuple[int, Any]) -> tuple[int, Loading]:
            return one[0], self.load(one[1])

        stream = load_ahead(load, numbered, self.views) if len(sources) > 1 else map(load, numbered)
        # `load` raises what is wrong with a picture.
        return [found for _, found in self.judge(stream, lambda key: "a picture") if isinstance(found, Verdict)]

    def load(self, source: ImageSource) -> Loading:
        """A picture, decoded for `judge`; may be called by several threads at once.

        Raises:
            ImageError: it cannot be read.
        """
        return load_views(source, self._preprocessings, self.views)

    def judge(
        self, loaded: Iterator[tuple[T, Loading]], name: Callable[[T], str]
    ) -> Iterator[tuple[T, Verdict | ImageError]]:
        """Verdicts on pictures one after the other, in their order; memory does not grow with them.

        Args:
            loaded: pictures of `load`, or what is wrong with them, each with whatever tells it.
            name: what tells a picture -> what messages call it.

        Raises:
            InputError: a detector failed.
            EncodingError: an embedding is not finite, or nothing but zeros.
        """
        squares: dict[int, tuple[Tensor, ...]] = {}

        def numbered() -> Iterator[tuple[tuple[int, T], Loading]]:
            for number, (key, found) in enumerate(loaded):
                if not isinstance(found, ImageError):
                    squares[number] = found[0].squares[len(self._metrics) :]
                yield (number, key), found

        embedded = embed_loaded(lambda: self._metrics, numbered(), lambda key: name(key[1]))
        while some := list(islice(embedded, _TOGETHER)):
            good = [(number, found) for (number, _), found in some if not isinstance(found, ImageError)]
            verdicts = iter(self._verdicts([found for _, found in good], [squares.pop(number) for number, _ in good]))
            for (_, key), found in some:
                yield key, found if isinstance(found, ImageError) else next(verdicts)

    def _verdicts(self, pictures: Sequence[Embedded], squares: Sequence[tuple[Tensor, ...]]) -> list[Verdict]:
        if not pictures:
            return []
        every = [(owner, seen) for owner, picture in enumerate(pictures) for seen in picture.views]
        near = nearest(
            self.banks,
            torch.stack([seen.embeddings[0] for _, seen in every]),
            [owner for owner, _ in every],
            [seen.view for _, seen in every],
            self.rule.votes,
        )
        scores: dict[str, list[float]] = {}
        taken = 0
        for one in self.detectors:
            if one.takes == "pixels":
                scores[one.name] = one.of_squares([some[taken] for some in squares])
                taken += 1
            else:
                at = self._metrics.index(one.metric or self.metric)
                scores[one.name] = one.of_embeddings(
                    torch.stack([picture.views[0].embeddings[at] for picture in pictures])
                )
        return self._decided(near, scores)

    def _of_embeddings(self, rows: Tensor) -> list[Verdict]:
        if self.views or any(one.takes == "pixels" or one.metric is not None for one in self.detectors):
            raise InputError(
                "an embedding has no views and no pixels, and is that of the banks' model alone: pass the picture"
            )
        found = self.metric.embed(rows).detach().cpu()
        near = nearest(self.banks, found, range(len(found)), [""] * len(found), self.rule.votes)
        return self._decided(near, {one.name: one.of_embeddings(found) for one in self.detectors})

    def _decided(
        self, near: Sequence[Mapping[str, tuple[Neighbour, ...]]], scores: Mapping[str, Sequence[float]]
    ) -> list[Verdict]:
        limits = {one.name: one.threshold for one in self.detectors}
        verdicts = []
        for at, evidence in enumerate(near):
            own = {name: of_all[at] for name, of_all in scores.items()}
            distances = {name: [one.distance for one in some] for name, some in evidence.items()}
            decision = self.rule.decide(distances, [name for name, score in own.items() if score >= limits[name]])
            verdicts.append(Verdict(*decision, evidence, own))
        return verdicts
