"""The work of an index on a Ray cluster: Ray Data embeds, actors scan."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from robustsim.errors import InputError, MissingDependencyError, RobustSimError
from robustsim.search.scale.spread import embed_fragment

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
R = TypeVar("R")


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingDependencyError('a cluster needs Ray: pip install "robustsim[ray]"') from None
    return ray


class _Embedder:
    """What an actor of Ray Data does with each block; the models stay in its process."""

    def __init__(self, **words: Any) -> None:
        self._words = words

    def __call__(self, batch: "Mapping[str, Any]") -> dict[str, Any]:
        return embed_fragment(batch, **self._words)


class _Scanner:
    """An actor that does whatever it is given; what it has read stays in its process."""

    def run(self, function: Callable[[Any], Any], work: Any) -> Any:
        return function(work)


class RayRunner:
    """Workers of a Ray cluster, that all see the folder of the index: a context, which lets go of them at its end.

    A worker that dies, or a machine, is replaced by Ray, and what it had in work is done again.

    Attributes:
        workers: how many there are.
        threads: of each.

    Args:
        address: of the cluster that this machine is one of, as `head:6379` or `auto`; None or `local` for one of this
            machine alone, which ends with the runner.
        workers: how many; None for as many as have room.
        cpus: cores of each worker, which are the threads of its encoder.
        gpus: GPUs of each worker; None for one where the cluster has as many as workers, else none.
        options: for `ray.init`.

    Raises:
        MissingDependencyError: Ray is not installed.
        InputError: the cluster has no room for a worker.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: int = 1,
        gpus: float | None = None,
        **options: Any,
    ) -> None:
        self._ray = _ray()
        self._began = not self._ray.is_initialized()
        if self._began:
            usual: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            if address in (None, "local"):
                usual |= {"include_dashboard": False}
            try:
                self._ray.init(address=address or "local", **(usual | options))
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"there is no cluster of Ray at {address or 'local'!r}: {error}") from error
        there = self._ray.cluster_resources()
        if cpus < 1 or there.get("CPU", 0) < cpus:
            raise InputError(f"the cluster has {there.get('CPU', 0):g} cores, and a worker should have {cpus}")
        self.workers = workers or max(1, int(there["CPU"] // cpus))
        has_gpus = there.get("GPU", 0) >= self.workers
        self.threads: int | None = cpus
        self._cpus, self._gpus = cpus, (1.0 if has_gpus else 0.0) if gpus is None else gpus
        self._scanners: list[Any] = []

    def __enter__(self) -> "RayRunner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the workers, and of the cluster if it was begun here."""
        for scanner in self._scanners:
            self._ray.kill(scanner)
        self._scanners = []
        if self._began:
            self._ray.shutdown()

    def embed(
        self, batches: "Iterator[dict[str, Any]]", index: str, filesystem: "pa.fs.FileSystem | None"
    ) -> "Iterator[Mapping[str, Any]]":
        """See `robustsim.search.scale.spread.Runner`: a block of Ray Data is a fragment."""
        import pyarrow as pa

        self._release()
        blocks = [pa.table({name: pa.array(list(column)) for name, column in batch.items()}) for batch in batches]
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.verbose_stats_logs = False
        words = {"index": index, "threads": self.threads, "filesystem": filesystem}
        words["device"] = "cuda" if self._gpus else "cpu"
        made = self._ray.data.from_arrow(blocks).map_batches(
            _Embedder,
            batch_size=None,
            batch_format="numpy",
            fn_constructor_kwargs=words,
            compute=self._ray.data.ActorPoolStrategy(size=min(self.workers, len(blocks))),
            num_cpus=self._cpus,
            **({"num_gpus": self._gpus} if self._gpus else {}),
        )
        with self._told():
            for row in made.iter_rows():
                yield {name: [value] for name, value in row.items()}

    def map(self, function: Callable[[T], R], work: Iterator[T]) -> Iterator[R]:
        """See `robustsim.search.scale.spread.Runner`: the same work goes to the same worker, as long as it lives."""
        if not self._scanners:
            again = {"max_restarts": -1, "max_task_retries": -1}
            actor = self._ray.remote(_Scanner).options(num_cpus=self._cpus, **again)
            self._scanners = [actor.remote() for _ in range(self.workers)]
        given = self._ray.put(function)
        waits: list[Any] = []
        for at, one in enumerate(work):
            waits.append(self._scanners[at % len(self._scanners)].run.remote(given, one))
            if len(waits) > 4 * len(self._scanners):
                ready, waits = self._ray.wait(waits)
                yield from self._results(ready)
        while waits:
            ready, waits = self._ray.wait(waits)
            yield from self._results(ready)

    def _results(self, ready: list[Any]) -> Iterator[Any]:
        with self._told():
            yield from self._ray.get(ready)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of this package that a worker raised, as they are."""
        try:
            yield
        except self._ray.exceptions.RayError as error:
            found: BaseException | None = error
            while found is not None and not isinstance(found, RobustSimError):
                found = getattr(found, "cause", None) or found.__cause__
            raise (found or error) from None

    def _release(self) -> None:
        """Give the cores of those that scan to those that embed."""
        for scanner in self._scanners:
            self._ray.kill(scanner)
        self._scanners = []
