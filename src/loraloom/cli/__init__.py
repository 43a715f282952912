"""The command line: one file per verb; nothing heavy is imported until the verb runs."""
