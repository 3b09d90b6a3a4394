"""The napari plugin: everything that imports napari, Qt or magicgui."""
