"""Everything robustsim raises on purpose.

RobustSimError
├── ImageError (ValueError)             a picture that cannot be read, or is not one
├── InputError (ValueError)             arguments that do not fit: shapes, counts, ranges, options
├── DataError (ValueError)              a data set whose files or rows are not what its format says
├── EncodingError (ArithmeticError)     an encoder whose embeddings are not finite
├── ObjectiveError (ArithmeticError)    an attack's objective that gave NaN, or cannot be differentiated
├── RecipeError (ValueError)            a recipe with unknown keys, or values that do not fit
├── TrainingError (ArithmeticError)     a training whose loss or weights are no longer finite
├── CardError (ValueError)              a card or config.json that cannot be understood
├── ModelNotFoundError (LookupError)    a name that is no catalogue entry, repository or folder
├── WeightsError (RuntimeError)         weights that do not fit their architecture or card
│   └── CorruptFileError                content that does not match its checksum or is damaged
├── HubError (OSError)                  the Hub could not be used: network, offline mode, disk
│   └── RepositoryError                 unknown or gated repository, revision or file
├── SearchError (RuntimeError)          an index that is damaged, or does not fit the model or the version
├── OutputError (OSError)               a result that cannot be written, or a run that cannot resume
└── MissingDependencyError (ImportError)    an optional package that is not installed

Each message names what was seen and what to do about it. The built-in base in brackets lets `except
ValueError` and its like keep working.
"""


class RobustSimError(Exception):
    """Base of every error that robustsim raises on purpose."""


class ImageError(RobustSimError, ValueError):
    """A picture that cannot be read, or is none; the message names the path where there is one."""


class InputError(RobustSimError, ValueError):
    """Arguments that do not fit: shapes, counts, value ranges, options."""


class DataError(RobustSimError, ValueError):
    """A data set whose files or rows are not what its format says; the message names the file and the row."""


class EncodingError(RobustSimError, ArithmeticError):
    """An encoder whose embeddings, or the distances made of them, are not finite."""


class ObjectiveError(RobustSimError, ArithmeticError):
    """An attack's objective that gave NaN, has no finite gradient, or changes the images it is given."""


class RecipeError(RobustSimError, ValueError):
    """A recipe that cannot be understood; the message names the file and the line."""


class TrainingError(RobustSimError, ArithmeticError):
    """A training that cannot go on: its loss or its weights are not finite."""


class CardError(RobustSimError, ValueError):
    """A card or a `config.json` that cannot be understood."""


class ModelNotFoundError(RobustSimError, LookupError):
    """A model name that is no catalogue entry, no Hub repository and no folder."""


class WeightsError(RobustSimError, RuntimeError):
    """Weights that do not fit the architecture or the card they are loaded for."""


class CorruptFileError(WeightsError):
    """A file whose content does not match its checksum, or cannot be parsed."""


class HubError(RobustSimError, OSError):
    """The Hub could not be used: no network, offline mode, no space on the disk."""


class RepositoryError(HubError):
    """A repository, revision or file that does not exist on the Hub or may not be read."""


class SearchError(RobustSimError, RuntimeError):
    """An index that is none, is damaged, or was made by another model or a newer version."""


class OutputError(RobustSimError, OSError):
    """A result that cannot be written, or an interrupted run that cannot be continued."""


class MissingDependencyError(RobustSimError, ImportError):
    """An optional package that a feature needs is not installed."""
