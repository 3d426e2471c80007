"""Durations in words. Sizes in bytes: see `storage.budget.format_bytes`."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Seconds as ``4.2 s``, ``41 s``, ``4 min 10 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def about(seconds: float) -> str:
    """Estimated seconds in words, as coarse as an estimate is: ``about 40 s``, ``about 7 min``, ``about 39 h``."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    if seconds < 72 * 3600:
        return f"about {seconds / 3600:.2g} h"
    return f"about {seconds / 86400:.0f} days"
