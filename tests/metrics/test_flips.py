"""Flips and their certificate, against loops over pixels written from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdeploy.core.task import Task
from segdeploy.metrics import FlipCount
from segdeploy.metrics import flips as module
from segdeploy.metrics.flips import decision_names

Logits = NDArray[np.float32]


def _draw(seed: int, channels: int, noise: float) -> tuple[Logits, Logits]:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(2, channels, 5, 6)).astype(np.float32)
    return reference, (reference + noise * rng.normal(size=reference.shape)).astype(np.float32)


def _slow(reference: Logits, candidate: Logits, tolerance: float) -> dict[str, int]:
    """Count by the definitions, pixel by pixel."""
    counts = {"flips": 0, "hard": 0, "certified": 0}
    for n, y, x in np.ndindex(reference.shape[0], *reference.shape[2:]):
        r, c = (v[n, :, y, x].astype(float).tolist() for v in (reference, candidate))
        if len(r) == 1:
            flipped, gap = (r[0] > 0) != (c[0] > 0), abs(r[0])
            safe = abs(c[0] - r[0]) < abs(r[0])
        else:
            a, b = r.index(max(r)), c.index(max(c))
            flipped, gap = a != b, r[a] - r[b]
            margin = min(r[a] - r[k] for k in range(len(r)) if k != a)
            safe = max(c[k] - r[k] - (c[a] - r[a]) for k in range(len(r))) < margin
        counts["flips"] += flipped
        counts["hard"] += flipped and gap > tolerance
        counts["certified"] += safe
        assert not (flipped and safe)
    return counts


@settings(deadline=None)
@given(seed=st.integers(0, 2**16), channels=st.sampled_from([1, 2, 3, 7]), noise=st.floats(0.01, 3))
def test_counts_equal_a_slow_loop(seed: int, channels: int, noise: float) -> None:
    reference, candidate = _draw(seed, channels, noise)
    task = Task.BINARY if channels == 1 else Task.MULTICLASS
    count = FlipCount(task, max(2, channels), tolerance=0.3)
    count.update(reference, candidate)
    expected = _slow(reference, candidate, 0.3)
    found = {
        "flips": count.num_flips, "hard": count.num_hard, "certified": count.num_certified,
    }  # fmt: skip
    assert found == expected
    assert count.num_pixels == 60
    assert count.num_flips + count.num_certified <= count.num_pixels


def test_a_shift_common_to_all_classes_flips_nothing_and_deviates_nothing() -> None:
    reference, _ = _draw(0, 4, 0)
    shift = np.linspace(-50, 50, 30, dtype=np.float32).reshape(1, 1, 5, 6)
    count = FlipCount(Task.MULTICLASS, 4)
    count.update(reference, reference + shift)
    assert count.num_flips == 0
    assert count.certified_rate == 1
    assert count.max_deviation < 1e-5
    assert count.max_abs == pytest.approx(50, rel=1e-5)


def test_deviation_is_the_largest_change_of_a_difference_of_two_logits() -> None:
    reference, candidate = _draw(3, 5, 0.1)
    count = FlipCount(Task.MULTICLASS, 5)
    count.update(reference, candidate)
    change = (candidate.astype(float) - reference)[:, :, None] - (
        candidate.astype(float) - reference
    )[:, None]
    assert count.max_deviation == pytest.approx(np.abs(change).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_non_finite_candidate_is_a_hard_flip_even_where_argmax_agrees(
    bad: float, channels: int
) -> None:
    reference, _ = _draw(1, channels, 0)
    candidate = reference.copy()
    top = int(reference[0, :, 2, 3].argmax())
    candidate[0, top, 2, 3] = bad
    count = FlipCount(Task.BINARY if channels == 1 else Task.MULTICLASS, max(2, channels), 1e9)
    count.update(reference, candidate)
    assert (count.num_flips, count.num_hard, count.num_broken) == (1, 1, 1)
    assert count.certified_rate == pytest.approx(59 / 60)
    assert count.max_abs == 0


def test_a_non_finite_reference_is_counted_and_never_excused() -> None:
    reference, candidate = _draw(1, 3, 0)
    reference[0, :, 0, 0] = np.inf
    count = FlipCount(Task.MULTICLASS, 3, 1e9)
    count.update(reference, candidate)
    assert (count.num_hard, count.num_broken, count.num_broken_reference) == (1, 0, 1)


def test_snr_and_cosine_equal_their_formulas() -> None:
    reference, candidate = _draw(5, 4, 0.2)
    count = FlipCount(Task.MULTICLASS, 4)
    count.update(reference[:1], candidate[:1])
    count.update(reference[1:], candidate[1:])
    r, c = reference.astype(float).ravel(), candidate.astype(float).ravel()
    assert count.snr_db == pytest.approx(10 * np.log10(r @ r / ((c - r) @ (c - r))))
    assert count.cosine == pytest.approx(r @ c / np.linalg.norm(r) / np.linalg.norm(c))


def test_equal_logits_have_no_noise_to_rate() -> None:
    reference, _ = _draw(5, 4, 0)
    count = FlipCount(Task.MULTICLASS, 4)
    count.update(reference, reference)
    assert count.snr_db is None
    assert count.cosine == pytest.approx(1)
    assert count.channel_snr_db == [None] * 4


def test_channel_snr_shows_swapped_classes_that_win_no_pixel() -> None:
    reference, candidate = _draw(6, 5, 0.01)
    reference[:, 0] += 100
    candidate[:, 0] += 100
    swapped = candidate[:, [0, 2, 1, 3, 4]]
    sound, broken = FlipCount(Task.MULTICLASS, 5), FlipCount(Task.MULTICLASS, 5)
    sound.update(reference, candidate)
    broken.update(reference, swapped)
    assert broken.num_flips == 0
    assert min(v for v in sound.channel_snr_db if v is not None) > 30
    rates = broken.channel_snr_db
    assert max(rates[1] or 0, rates[2] or 0) < 3
    assert min(rates[0] or 0, rates[3] or 0) > 30


def test_labels_only_count_as_the_logits_that_gave_them() -> None:
    reference, candidate = _draw(7, 3, 0.5)
    by_logits, by_labels = (FlipCount(Task.MULTICLASS, 3, 0.2) for _ in range(2))
    by_logits.update(reference, candidate)
    by_labels.update_labels(reference, candidate.argmax(1).astype(np.uint8))
    assert by_labels.num_flips == by_logits.num_flips > 0
    assert by_labels.num_hard == by_logits.num_hard > 0
    assert by_labels.class_flip_rate == by_logits.class_flip_rate
    assert by_labels.certified_rate is None
    assert by_labels.snr_db is None


def test_a_label_that_is_no_class_is_a_hard_flip() -> None:
    reference, _ = _draw(7, 3, 0)
    labels = reference.argmax(1).astype(np.uint8)
    labels[0, 0, 0] = 3
    count = FlipCount(Task.MULTICLASS, 3, 1e9)
    count.update_labels(reference, labels)
    assert (count.num_flips, count.num_hard) == (1, 1)


def test_class_rates_are_shares_of_the_references_pixels() -> None:
    reference = np.zeros((1, 3, 1, 4), np.float32)
    reference[0, [0, 0, 0, 1], 0, range(4)] = 1
    candidate = reference.copy()
    candidate[0, 2, 0, :2] = 5
    count = FlipCount(Task.MULTICLASS, 3)
    count.update(reference, candidate)
    assert count.class_flip_rate == [pytest.approx(2 / 3), 0.0, None]


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate = _draw(8, 3, 0.5)
    whole, parts = (FlipCount(Task.MULTICLASS, 3, 0.2) for _ in range(2))
    whole.update(reference, candidate)
    monkeypatch.setattr(module, "_BAND_ELEMENTS", 40)
    parts.update(reference, candidate)
    assert (parts.num_flips, parts.num_hard, parts.num_certified, parts.num_pixels) == (
        whole.num_flips, whole.num_hard, whole.num_certified, whole.num_pixels,
    )  # fmt: skip
    assert parts.snr_db == pytest.approx(whole.snr_db)


def test_one_class_cannot_flip() -> None:
    reference, candidate = _draw(9, 1, 1)
    count = FlipCount(Task.MULTICLASS, 1)
    count.update(reference, candidate)
    assert count.num_flips == 0
    assert count.certified_rate == 1


def test_multilabel_counts_each_class_as_a_binary_task_of_its_own() -> None:
    reference, candidate = _draw(5, 3, 0.7)
    candidate[0, 1, 2, 3] = np.nan
    count = FlipCount(Task.MULTILABEL, 6, tolerance=0.3)
    count.update(reference, candidate)
    alone = [FlipCount(Task.BINARY, 2, tolerance=0.3) for _ in range(3)]
    for k, binary in enumerate(alone):
        binary.update(reference[:, k : k + 1], candidate[:, k : k + 1])
    for name in ("num_pixels", "num_flips", "num_hard", "num_certified", "num_broken"):
        assert getattr(count, name) == sum(getattr(binary, name) for binary in alone), name
    assert count.num_pixels == 3 * 60
    assert count.num_broken == 1
    assert count.class_flip_rate == [rate for binary in alone for rate in binary.class_flip_rate]
    assert count.max_deviation == max(binary.max_deviation for binary in alone)
    assert count.channel_noise == pytest.approx([b.channel_noise[0] for b in alone])
    sound = np.isfinite(candidate)
    signal = np.mean([reference[:, k][sound[:, k]].astype(float).var() for k in range(3)])
    expected = 10 * np.log10(signal / np.square(count.channel_noise))
    np.testing.assert_allclose(np.array(count.channel_snr_db, float), expected)


def test_multilabel_has_two_names_a_class_and_no_label_map() -> None:
    names = decision_names(Task.MULTILABEL, ("road", "wet"))
    assert names == ("not road", "road", "not wet", "wet")
    count = FlipCount(Task.MULTILABEL, len(names))
    with pytest.raises(ValueError, match="not one label map"):
        count.update_labels(np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2), np.uint8))


def test_shapes_that_differ_are_refused() -> None:
    count = FlipCount(Task.MULTICLASS, 3)
    with pytest.raises(ValueError, match="shapes"):
        count.update(np.zeros((1, 3, 2, 2)), np.zeros((1, 3, 2, 3)))
    with pytest.raises(ValueError, match="do not fit"):
        count.update_labels(np.zeros((1, 3, 2, 2)), np.zeros((1, 2, 3), np.uint8))
