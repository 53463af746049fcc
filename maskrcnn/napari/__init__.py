"""The plugin for napari: a widget that finds cells, a reader for results, and example pictures (``napari.yaml``).

Nothing in the package imports it; napari does, by the entry point ``napari.manifest``.
"""
