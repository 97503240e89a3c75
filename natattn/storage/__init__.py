"""Files that are written atomically, and documents that are read with limits."""
