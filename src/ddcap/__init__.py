"""DDCap: discrete diffusion for image captioning.

>>> from ddcap import Captioner
>>> captioner = Captioner.from_pretrained()
>>> captioner("photo.jpg")[0].text
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "__version__"]

if TYPE_CHECKING:
    from ddcap.captioner import Caption, Captioner


def __getattr__(name: str) -> Any:
    """Import torch only when a captioner is wanted: importing the package is free."""
    if name in ("Caption", "Captioner"):
        from ddcap import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module 'ddcap' has no attribute {name!r}")
