"""Measures of what the imaging part does, over the small base that ships with the package."""
