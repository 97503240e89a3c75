"""Studies of the papers' claims: from a study's file to runs, analyses, verdicts, tables and a page."""
