"""The paper's tables and figures, beside this repository's runs and counts."""
