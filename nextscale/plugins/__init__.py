"""How plugins are found, without torch, and how a modality's code is reached."""

from nextscale.plugins.discovery import Plugins, discover
from nextscale.plugins.implementations import load_object, modality, modality_config, place_in_plugin
from nextscale.plugins.loading import third_party
from nextscale.plugins.records import BrokenPlugin, Clash, ModalityPlugin

__all__ = [
    "BrokenPlugin",
    "Clash",
    "ModalityPlugin",
    "Plugins",
    "discover",
    "load_object",
    "modality",
    "modality_config",
    "place_in_plugin",
    "third_party",
]
