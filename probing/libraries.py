"""Shared handling of Hugging Face's libraries: their terminal output, and their many errors as one line each."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("diffusers", "transformers", "huggingface_hub")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress progress bars, notices and warnings of the libraries; errors are still logged."""
    import diffusers
    import transformers

    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    progress = [library.utils.logging for library in (diffusers, transformers)]
    enabled = [module for module in progress if module.is_progress_bar_enabled()]
    for module in enabled:
        module.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for module in enabled:
            module.enable_progress_bar()


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn any error raised while a model is loaded into a ValueError of one line: `model.name: NAME: REASON`."""
    try:
        yield
    except Exception as error:  # the libraries raise many types, and the user can fix the cause of each
        raise ValueError(f"model.name: {name}: {failure_reason(error, name)}") from error


def failure_reason(error: BaseException, name: str) -> str:
    """Why loading failed, and the fix if it is known; otherwise the first line of the error."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    # by name, because importing the classes would import torch and safetensors
    types = {type(e).__name__ for e in chain}
    if type(error).__name__ == "OutOfMemoryError":
        return "does not fit the device's memory; try model.dtype=float16"
    if isinstance(error, MemoryError):
        return "does not fit this machine's memory; try model.dtype=float16"
    if types & {"GatedRepoError", "RepositoryNotFoundError"}:
        return (
            f"the hub refused access: no such model, or it needs a token; accept its terms at "
            f"https://huggingface.co/{name}, then `hf auth login` or set HF_TOKEN"
        )
    if "RevisionNotFoundError" in types:
        return "no such model.revision; give a commit of that model"
    if types & {"LocalEntryNotFoundError", "ConnectError", "ConnectionError", "OfflineModeIsEnabled"}:
        return "not in the local cache, and the hub can't be reached; give a local directory"
    if "SafetensorError" in types:
        return "weights truncated or damaged; download them again"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first[:400]
