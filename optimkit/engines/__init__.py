"""Engines: how stages run on arrays. Engines never name an optimizer."""
