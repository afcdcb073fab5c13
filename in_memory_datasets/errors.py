"""One tree of exceptions; everything this library raises on purpose is in it.

    InMemoryDatasetsError(Exception)
    ├─ ConfigError(ValueError)         impossible arguments, raised before any I/O
    ├─ MissingExtraError(ImportError)  an optional dependency is needed; names the pip command
    ├─ MemoryLimitError(MemoryError)   what is asked for does not fit
    ├─ SampleError                     one sample failed; the policy decides what follows
    │  ├─ FetchError                   its bytes could not be had
    │  └─ DecodeError                  its bytes are not what they should be
    ├─ LoadError                       nothing usable was loaded, or on_error="raise"
    └─ StoreError                      closed, locked, short, altered, or another format version

Every error takes its message and optional keyword arguments, and so survives pickling between processes.
"""

from __future__ import annotations


class InMemoryDatasetsError(Exception):
    """Root of everything this library raises on purpose.

    Example:
        >>> try:
        ...     raise StoreError("samples.safetensors is 10 bytes short")
        ... except InMemoryDatasetsError as error:
        ...     print(error)
        samples.safetensors is 10 bytes short
    """


class ConfigError(InMemoryDatasetsError, ValueError):
    """Report arguments that cannot work; raised before any I/O, with the valid choices.

    Example:
        >>> raise ConfigError("resize='zoom': choose 'stretch', 'crop' or 'pad'")
        Traceback (most recent call last):
        in_memory_datasets.errors.ConfigError: resize='zoom': choose 'stretch', 'crop' or 'pad'
    """


class MissingExtraError(InMemoryDatasetsError, ImportError):
    """Report an optional dependency that is not installed.

    Example:
        >>> raise MissingExtraError("m4a needs PyAV: pip install 'in-memory-datasets[audio]'", extra="audio")
        Traceback (most recent call last):
        in_memory_datasets.errors.MissingExtraError: m4a needs PyAV: pip install 'in-memory-datasets[audio]'
    """

    def __init__(self, message: str = "", *, extra: str = "") -> None:
        super().__init__(message)
        self.extra = extra


class MemoryLimitError(InMemoryDatasetsError, MemoryError):
    """Report a dataset that does not fit, with both numbers and the ways out.

    Example:
        >>> raise MemoryLimitError("needs 3.0 GB, has 1.0 GB", bytes_needed=3 * 10**9, bytes_available=10**9)
        Traceback (most recent call last):
        in_memory_datasets.errors.MemoryLimitError: needs 3.0 GB, has 1.0 GB
    """

    def __init__(self, message: str = "", *, bytes_needed: int = 0, bytes_available: int = 0) -> None:
        super().__init__(message)
        self.bytes_needed = bytes_needed
        self.bytes_available = bytes_available


class SampleError(InMemoryDatasetsError):
    """Report one sample that failed.

    `stage` is "row", "fetch" or "decode"; `reason` is one of `schema.REASONS`; `attempts` counts requests made, and
    `seconds` is what the last of them took.

    Example:
        >>> raise SampleError("row 7 has no image", stage="row", reason="empty")
        Traceback (most recent call last):
        in_memory_datasets.errors.SampleError: row 7 has no image
    """

    default_stage = "row"

    def __init__(
        self,
        message: str = "",
        *,
        stage: str = "",
        reason: str = "corrupt",
        host: str = "",
        attempts: int = 0,
        seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.stage = stage or self.default_stage
        self.reason = reason
        self.host = host
        self.attempts = attempts
        self.seconds = seconds


class FetchError(SampleError):
    """Report a sample whose encoded bytes could not be had.

    Example:
        >>> raise FetchError("https://a.example/1.jpg: the server answered 404", reason="http_404")
        Traceback (most recent call last):
        in_memory_datasets.errors.FetchError: https://a.example/1.jpg: the server answered 404
    """

    default_stage = "fetch"


class DecodeError(SampleError):
    """Report a sample whose bytes are truncated, damaged or not media at all.

    Example:
        >>> raise DecodeError("these 512 bytes are no picture", reason="not_media")
        Traceback (most recent call last):
        in_memory_datasets.errors.DecodeError: these 512 bytes are no picture
    """

    default_stage = "decode"


class LoadError(InMemoryDatasetsError):
    """Report a load that ended without a usable dataset.

    Example:
        >>> raise LoadError("0 of 100 samples loaded: 97 http_404, 3 timeout")
        Traceback (most recent call last):
        in_memory_datasets.errors.LoadError: 0 of 100 samples loaded: 97 http_404, 3 timeout
    """


class StoreError(InMemoryDatasetsError):
    """Report a store that is closed, locked, short, altered or of another format version.

    Example:
        >>> raise StoreError("/data/coco: format version 9, this library reads 1")
        Traceback (most recent call last):
        in_memory_datasets.errors.StoreError: /data/coco: format version 9, this library reads 1
    """
