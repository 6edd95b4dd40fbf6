"""Keep libraries from saying what nobody can act on, and from giving memory back that they ask for again."""

import ctypes
import logging
import warnings

# What libraries say at every start and nobody here can act on.
_HARMLESS_WARNINGS = (
    ".*LightningCLI's args parameter.*",
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*it is recommended to use `Trainer\\(devices=1.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # the data module has the place
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen features
    ".*Total length of `list` across ranks is zero.*",
)
_HARMLESS_MESSAGES = (
    "litlogger",
    "Detected KeyboardInterrupt",
    "to estimate number of stepping batches",
    "Seed set to",
)


def quieten() -> None:
    """Silence library messages that users can do nothing about."""
    for pattern in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for module in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logger = logging.getLogger(f"lightning.{module}")
        if _is_useful not in logger.filters:
            logger.addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _HARMLESS_MESSAGES)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: returning large tensors to the kernel and faulting them in again costs 2-3x.

    The same as starting the process with MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ at 16 GiB.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # not glibc
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
