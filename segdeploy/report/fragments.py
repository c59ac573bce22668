"""Small pieces of a page that several sections use."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from segdeploy.report.pictures import Picture


def folded(blocks: Sequence[tuple[str, str]]) -> str:
    """Return the first (name, content) open and the others folded away under their names."""
    (name, first), *others = blocks
    title = f"<h3>{escape(name)}</h3>" if others else ""
    return f"{title}{first}" + "".join(
        f"<details><summary>{escape(name)}</summary>{content}</details>" for name, content in others
    )


def shots(pictures: Sequence[Picture], size: str = "") -> str:
    """Return pictures side by side with their captions, or nothing; `size` is a CSS class."""
    figures = "".join(
        f'<figure><img src="{picture.url}" alt="{escape(picture.caption)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    )
    return f'<div class="shots {size}">{figures}</div>' if figures else ""
