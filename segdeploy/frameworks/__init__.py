"""Doors to foreign packages that need care at import: one file per package."""
