"""Losses, one file per family; `weighted.py` adds them up, `terms.py` reads their notation.

Every loss is a total (a sum over pixels or over images) and a normaliser (what to divide it by).
They are separate, because the ranks of a distributed run, and the parts of an accumulated batch,
must divide by the normaliser of all of them: averaging means would weight a rank with few valid
pixels too much. Losses that are no sum over pixels (dice, jaccard, tversky, lovasz and hard-pixel
mining) are therefore defined per image and averaged over images; then this holds for them too.
Losses are computed in fp32, whatever the autocast precision, so that large logits stay finite.
"""
