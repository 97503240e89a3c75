"""The `natattn` command, one file a sub-command."""
