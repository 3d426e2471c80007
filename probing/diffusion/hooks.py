"""Context managers that record or rewrite the outputs of sites while the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from probing.diffusion.sites import SiteSpec

Sink = Callable[[SiteSpec, Tensor], None]
"""(site, output (n, tokens, channels)) -> None"""
Edit = Callable[[SiteSpec, Tensor], Tensor]
"""(site, output fp32 (n, tokens, channels)) -> edited output of the same shape"""
Output = Tensor | tuple[Tensor | None, ...]
"""of a module: blocks with joint attention return (text, image)"""
Replace = Callable[[SiteSpec, Output], Output | None]
"""(site, the module's own output) -> its replacement, or None to keep it"""


def image_of(output: Output) -> Tensor:
    """The part of a module's output with the image: (n, text and image tokens, channels) or (n, channels, h, w)."""
    image = output[-1] if isinstance(output, tuple) else output
    assert image is not None
    return image


def as_tokens(site: SiteSpec, image: Tensor) -> Tensor:
    """A site's output as (n, tokens, channels), without the text tokens that joint attention has before the image's."""
    return image.flatten(2).transpose(1, 2) if image.ndim == 4 else image[:, -site.tokens :]


@contextmanager
def _hooked(network: nn.Module, sites: Sequence[SiteSpec], replace: Replace) -> Iterator[None]:
    def hook_of(site: SiteSpec) -> Callable[[nn.Module, object, Output], Output | None]:
        return lambda _module, _inputs, output: replace(site, output)

    with ExitStack() as stack:
        for site in sites:
            handle = network.get_submodule(site.module).register_forward_hook(hook_of(site))
            stack.callback(handle.remove)
        yield


@contextmanager
def record(network: nn.Module, sites: Sequence[SiteSpec], sink: Sink) -> Iterator[None]:
    """Pass every output of the sites, (n, tokens, channels), to `sink` in order of execution."""

    def keep(site: SiteSpec, output: Output) -> None:
        sink(site, as_tokens(site, image_of(output).detach()))

    with _hooked(network, sites, keep):
        yield


@contextmanager
def rewrite(network: nn.Module, sites: Sequence[SiteSpec], edit: Edit, guided: bool = True) -> Iterator[None]:
    """Replace the outputs of sites with what `edit` returns.

    guided: the batch is [unconditional, conditional], and only its second half is edited. Later sites of the same call
    are computed from the edit; text tokens stay as they are. Raises ValueError if an edit changes the shape.
    """

    def replace(site: SiteSpec, output: Output) -> Output:
        image = image_of(output)
        changed = image.clone()
        half = len(image) // 2 if guided else 0
        before = as_tokens(site, image[half:].detach())
        after = edit(site, before.float())
        if after.shape != before.shape:
            raise ValueError(f"edit of {site.name}: expected shape {tuple(before.shape)}, got {tuple(after.shape)}")
        if image.ndim == 4:
            changed[half:] = after.transpose(1, 2).reshape(image[half:].shape).to(image.dtype)
        else:
            changed[half:, -site.tokens :] = after.to(image.dtype)
        return (*output[:-1], changed) if isinstance(output, tuple) else changed

    with _hooked(network, sites, replace):
        yield
