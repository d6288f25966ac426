"""Images: fetched from registries, verified, kept as unpacked layers. Start at images.py."""

from agent.images.images import Image, Images
from agent.images.manifest import ImageConfig
from agent.images.transport import Registry

__all__ = ["Image", "ImageConfig", "Images", "Registry"]
