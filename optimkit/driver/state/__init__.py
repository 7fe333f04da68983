"""State: live views of it, copies by name, copies taken over again, pickles."""
