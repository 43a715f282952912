"""Base models: where they lie, how they are loaded, what is new in them, how they compute."""
