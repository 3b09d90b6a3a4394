"""Values of the plugin's page in napari's Preferences; outside napari, the defaults of the manifest.

The page is declared in ``napari.yaml`` (``configurations``); napari stores the values and shows the dialog.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npe2 import PluginManager

PLUGIN = "napari-gsvolume"
AUTO = "auto"
MOST_ELLIPSOIDS = 5000
"""Default number of Gaussians above which they are shown as points: a larger surface slows the viewer down."""

_threads_of_torch: int | None = None  # before the first change


def preferred_device() -> str | None:
    """Return the device that every widget starts with; None where each keeps its own."""
    device = str(_value("computing", "device", AUTO))
    return None if device == AUTO else device


def use_preferred_threads() -> None:
    """Let numba and torch use the preferred number of threads, for runs in the calling thread."""
    global _threads_of_torch
    wanted = int(_value("computing", "threads", 0))
    if not wanted and _threads_of_torch is None:
        return
    import numba
    import torch

    if _threads_of_torch is None:
        _threads_of_torch = torch.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(min(wanted, most) if wanted else most)
    torch.set_num_threads(wanted or _threads_of_torch)


def most_ellipsoids() -> int:
    """Return the largest number of Gaussians that are shown as ellipsoids; more are shown as points."""
    return int(_value("display", "most_ellipsoids", MOST_ELLIPSOIDS))


def remembers_settings() -> bool:
    """Return whether widgets start with the settings of the last session."""
    return bool(_value("settings", "remember", True))


def settings_folder() -> Path | None:
    """Return the folder of the remembered settings; None for the one where the system keeps those of programs."""
    folder = str(_value("settings", "folder", "")).strip()
    return Path(folder).expanduser() if folder else None


def _value(page: str, name: str, default: Any) -> Any:
    """Return a value from napari's Preferences, or the default where napari does not know the plugin."""
    if PLUGIN not in PluginManager.instance():  # outside napari: do not make it search for plugins
        return default
    try:
        from napari.settings import get_plugin_settings

        return getattr(getattr(get_plugin_settings(PLUGIN), page), name)
    except (ImportError, KeyError, AttributeError):  # an older napari; disabled, or registered after its settings
        return default
