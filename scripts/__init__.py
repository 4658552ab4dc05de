"""The command-line scripts, and their subpackages: paper, jobs and bench."""
