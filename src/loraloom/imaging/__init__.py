"""Pictures from prompts: the prompt language, conditioning, sampling, recipes and grids."""
