"""Gradients of a step: found, compared with those before, checked, and kept apart where they share memory."""
