"""The parts: tensors in, tensors out. No configuration, no files, no globals.

The tensor alphabet, used in every signature:
    B batch · T query positions · S key positions · D model width · H heads · K key/value heads
    E head size · F feed-forward width · V vocabulary · N tokens of a flattened batch
"""
