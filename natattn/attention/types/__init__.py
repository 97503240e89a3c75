"""The attention types, one file each: settings, attention function, and what the type does to a model."""
