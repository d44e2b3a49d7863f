"""DDCap: discrete diffusion for image captioning.

>>> from ddcap import Captioner
>>> captioner = Captioner.from_pretrained()
>>> captioner("photo.jpg")[0].text
"""

from typing import TYPE_CHECKING, Any

from ddcap.renamed import install as _install_old_names

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "__version__"]

if TYPE_CHECKING:
    from ddcap.captioner import Captioner
    from ddcap.decoding.caption import Caption

_install_old_names()


def __getattr__(name: str) -> Any:
    """Import what captioning takes only when it is wanted: importing the package is free."""
    if name == "Captioner":
        from ddcap.captioner import Captioner

        return Captioner
    if name == "Caption":
        from ddcap.decoding.caption import Caption

        return Caption
    raise AttributeError(f"module 'ddcap' has no attribute {name!r}")
