"""Export and deploy toolchain for semantic segmentation."""
