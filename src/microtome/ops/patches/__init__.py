"""Patches of an image: where they lie, in which order, and their pixels, planned together."""
