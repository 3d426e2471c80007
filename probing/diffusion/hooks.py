"""Context managers that record or rewrite the outputs of sites while the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from probing.diffusion.sites import SiteSpec

Sink = Callable[[SiteSpec, Tensor], None]
Edit = Callable[[SiteSpec, Tensor], Tensor]


def as_tokens(site: SiteSpec, output: Tensor) -> Tensor:
    """A site's output as (n, tokens, channels); convolutions come as (n, channels, h, w)."""
    return output.flatten(2).transpose(1, 2) if site.family == "conv" else output


@contextmanager
def _hooked(
    network: nn.Module, sites: Sequence[SiteSpec], make: Callable[[SiteSpec], Callable[..., Any]]
) -> Iterator[None]:
    with ExitStack() as stack:
        for site in sites:
            handle = network.get_submodule(site.module).register_forward_hook(make(site))
            stack.callback(handle.remove)
        yield


@contextmanager
def record(network: nn.Module, sites: Sequence[SiteSpec], sink: Sink) -> Iterator[None]:
    """Hands every output of the sites, (n, tokens, channels), to `sink` in order of execution."""

    def make(site: SiteSpec) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            sink(site, as_tokens(site, output.detach()))

        return hook

    with _hooked(network, sites, make):
        yield


@contextmanager
def rewrite(network: nn.Module, sites: Sequence[SiteSpec], edit: Edit, guided: bool = True) -> Iterator[None]:
    """Replaces what `edit` returns for the conditional half, fp32 (n, tokens, channels).

    With guidance the batch is [unconditional, conditional] and only its second half is edited;
    later sites of the same call see the edit.
    """

    def make(site: SiteSpec) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            half = len(output) // 2 if guided else 0
            before = as_tokens(site, output[half:].detach())
            after = edit(site, before.float())
            if after.shape != before.shape:
                raise ValueError(
                    f"edit of {site.name}: got shape {tuple(after.shape)}, "
                    f"need {tuple(before.shape)}; return what was given, edited"
                )
            if site.family == "conv":
                after = after.transpose(1, 2).reshape(output[half:].shape)
            changed[half:] = after.to(output.dtype)
            return changed

        return hook

    with _hooked(network, sites, make):
        yield
