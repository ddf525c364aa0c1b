"""Functions compiled by numba, and a cache of them that many jobs can share.

numba is imported here, so a module that has compiled functions is itself imported where it is used.
"""

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import is_jitted


def compiled(function: Callable) -> Callable:
    """Compile a function at its first call for each type of arguments, and keep the result.

    No `fastmath`: without it LLVM neither reorders nor fuses what is written, so every processor
    gives the same bits. No threads, so forked workers are safe.

    Where numba finds no folder to keep the result in (`NUMBA_CACHE_DIR`, `__pycache__` beside the
    module, the user's cache), each process compiles anew.
    """
    dispatcher = numba.njit(function)
    with contextlib.suppress(RuntimeError):  # "no locator available": no folder to write to
        dispatcher._cache = _SharedCache(function)
    return dispatcher


class _SharedCache(FunctionCache):
    """numba's cache of one function, safe for many jobs that start at once on a shared disk."""

    def __init__(self, function: Callable):
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), *_named_by(function))
        self._cache_file = _KeyedFiles(self._cache_path, self._impl.filename_base, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled; a full disk only costs the next job its time."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


class _KeyedFiles(IndexDataCacheFile):
    """Compiled code in files whose names tell what they hold, each renamed into place.

    numba numbers its files and keeps an index of them. Two jobs that start without a cache can
    give the same number to code for two processors or two types of arguments, and the index of
    one then leads to the code of the other.
    """

    def save(self, key: Any, data: Any) -> None:
        """Write the code compiled for a key: types, processor and bytecode."""
        self._save_data(self._name(key), data)

    def load(self, key: Any) -> Any:
        """Return what was kept for a key; None if nothing was, or a crash left half of it."""
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
            return self._load_data(self._name(key))

    def _name(self, key: Any) -> str:
        digest = hashlib.sha256(repr((self._version, self._source_stamp, key)).encode())
        return self._data_name_pattern.format(number=int(digest.hexdigest()[:16], 16))


def _named_by(function: Callable) -> Iterator[str]:
    """Yield what a function was compiled with from outside itself: numbers, other functions.

    numba itself looks at the function's own file only.
    """
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if is_jitted(value) and isinstance(value._cache, _SharedCache):
            yield f"{name} {value._cache._cache_file._source_stamp}"
        elif isinstance(value, int | float | tuple):
            yield f"{name} {value!r}"
