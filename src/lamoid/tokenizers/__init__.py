"""Text <-> ids. No torch here: ids are Python lists and numpy arrays."""
