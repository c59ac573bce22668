"""Building blocks that several architectures share; each one file, none knows an encoder."""
