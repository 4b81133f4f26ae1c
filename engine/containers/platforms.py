"""Whether an image is for the platform that a container is wanted on. Pure.

An image that names no architecture is taken for one of any.
"""

from __future__ import annotations

from shoal.errors import NotFound
from worker.images import oci
from worker.images.model import Image
from worker.images.registry.manifests import parse_platform, platform_text


def check(image: Image, ref: str, platform: str, host: oci.Platform) -> None:
    """Raises: NotFound, on which the command line pulls; InvalidArgument (no platform at all)."""
    if not platform:
        return
    wanted = parse_platform(platform, host)
    if not _fits(image, wanted):
        raise NotFound(
            f"image with reference {ref} was found but does not match the specified platform:"
            f" wanted {platform_text(wanted)}, actual: {platform_text(_platform_of(image))}"
        )


def warning(image: Image, host: oci.Platform) -> str:
    """What is to be said when nobody asked for the image's platform; empty: it is the node's."""
    if _fits(image, host):
        return ""
    return (
        f"The requested image's platform ({platform_text(_platform_of(image))}) does not match the"
        f" detected host platform ({platform_text(host)}) and no specific platform was requested"
    )


def _fits(image: Image, wanted: oci.Platform) -> bool:
    return not image.architecture or oci.runs_on(_platform_of(image), wanted)


def _platform_of(image: Image) -> oci.Platform:
    return oci.Platform(os=image.os, architecture=image.architecture, variant=image.variant)
