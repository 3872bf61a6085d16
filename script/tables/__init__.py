"""The paper's tables: rows to run, where their results are, layouts, and the report."""
