"""Architectures, each one file; `segdeploy.zoo.catalog` names them."""
