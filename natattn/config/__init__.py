"""From the command line and conf/ to plain values; the base of all settings."""
