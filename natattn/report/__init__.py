"""Tables, figures and pages, for the terminal and for files."""
