"""Readers for YAML and npz files that stay within bounds, whatever the file holds."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:  # a mistyped file's name is answered before numpy is there
    from numpy.typing import NDArray

#: A YAML file's length, how deep it nests and how many values and aliases it has, at most.
LARGEST_YAML, DEEPEST_YAML, MOST_VALUES, MOST_ALIASES = 20_000_000, 40, 500_000, 1000

#: What the arrays of an npz file may unfold into, in bytes.
LARGEST_ARRAYS = 32e9

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises OSError, UnicodeDecodeError, yaml.YAMLError; ValueError where
    it goes beyond the bounds."""
    if path.stat().st_size > LARGEST_YAML:
        raise ValueError(f"larger than {LARGEST_YAML / 1e6:.0f} MB")
    text = path.read_text(encoding="utf-8")
    depth = aliases = 0
    events = yaml.parse(text, Loader=_Loader)  # one after the other: nothing recurs
    for values, event in enumerate(events):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > DEEPEST_YAML or values > MOST_VALUES or aliases > MOST_ALIASES:
            raise ValueError("nested too deep or with too many values")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # a date of the year 0, a number of base 60
        raise ValueError(f"a value that can't be read ({error})") from error


def read_arrays(path: Path, most: float = LARGEST_ARRAYS) -> Mapping[str, NDArray[Any]]:
    """The arrays of an .npz file, by name. Raises OSError; ValueError for anything else than
    arrays of numbers of at most so many bytes."""
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(entry.file_size for entry in archive.infolist())
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"not an .npz file ({error})") from error
    if unfolded > most:
        raise ValueError(f"it unfolds into {unfolded / 1e9:.1f} GB, more than {most / 1e9:g} GB")
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, NDArray[Any]] = {}
            for name in file.files:
                value = file[name]
                if not isinstance(value, np.ndarray):
                    raise ValueError(f"{name} is no array")
                found[name] = value
            return found
    except OSError:
        raise
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
