"""An ONNX Runtime session that is a good neighbour: as many threads as cores, and none that waits by spinning."""

import os
from typing import Any

from robustsim.errors import CorruptFileError, MissingDependencyError
from robustsim.images.files import worker_count


def open_session(model: bytes, what: str) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: a serialised graph.
        what: what messages call it.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        CorruptFileError: the graph cannot be run.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{what} is run by onnxruntime, which is not installed: pip install 'robustsim[fast]'"
        ) from error
    except Exception as error:  # built for another NumPy, a library that is missing: of any kind
        raise MissingDependencyError(
            f"{what} is run by onnxruntime, which is installed and cannot be imported ({error}): pip install "
            "--force-reinstall onnxruntime"
        ) from error
    onnxruntime.disable_telemetry_events()  # nobody asked for it
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.inter_op_num_threads = 1
    # Threads that spin for the next layer take the time of whoever decodes the next picture.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds, of which it says that they are no interface
        raise CorruptFileError(f"onnxruntime cannot run {what}: {error}") from error


def thread_count() -> int:
    """OMP_NUM_THREADS, as for torch, or one for each core that this process may use, at most 16."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else worker_count()
