"""The statistics against textbook examples, scipy, and a simulation."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from bench.analysis.stats import (
    Interval,
    effect_size,
    half_width,
    holm,
    mean_interval,
    paired_t_p,
    paired_test,
    probability_of_improvement,
    sign_flip_p,
    smallest_detectable,
    smallest_sign_flip_p,
    wilcoxon_p,
    wilson,
)

# Hours of sleep gained with two drugs by ten patients (Student, Biometrika 6, 1908, page 20).
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_sleep_data_gives_the_published_test() -> None:
    found = paired_test(DRUG_2, DRUG_1)
    assert found.difference.n == 10
    assert found.difference.mean == pytest.approx(1.58)
    assert found.difference.low == pytest.approx(0.7001, abs=5e-5)
    assert found.difference.high == pytest.approx(2.4599, abs=5e-5)
    assert found.p_t == pytest.approx(0.002833, abs=5e-7)
    # No difference is negative, one is 0: of 1024 sign patterns 2 * 2 (all others alike) reach the sum.
    assert found.p_sign_flip == 4 / 1024


def test_mean_interval_by_hand() -> None:
    # Mean 3, squared deviations 4 + 1 + 0 + 1 + 4 = 10, sd^2 = 10 / 4, se^2 = 2.5 / 5, t(4) = 2.776445.
    found = mean_interval([1, 2, 3, 4, 5])
    assert (found.n, found.mean) == (5, 3.0)
    assert found.half_width == pytest.approx(2.776445 * np.sqrt(0.5), rel=1e-6)
    assert found.scaled(100).low == pytest.approx(300 - 100 * found.half_width)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_agrees_with_scipy(n: int) -> None:
    a, b = np.random.default_rng(n).normal([[0.0], [0.5]], 1.0, size=(2, n))
    theirs = scipy_stats.ttest_rel(a, b)
    bounds = theirs.confidence_interval(0.95)
    ours = paired_test(a, b)
    assert ours.p_t == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (ours.difference.low, ours.difference.high) == pytest.approx((bounds.low, bounds.high))


def test_sign_flip_agrees_with_scipy() -> None:
    sample = np.random.default_rng(3).normal(0.4, 1.0, size=8)
    theirs = scipy_stats.permutation_test((sample,), np.mean, permutation_type="samples", n_resamples=2**8)
    assert sign_flip_p(sample) == pytest.approx(theirs.pvalue)


def test_sign_flip_by_hand() -> None:
    # |sum| of the eight patterns of 1, 2, 4: 7 5 3 1 1 3 5 7. All reach the observed |1 + 2 - 4| = 1,
    # six of them 1 - 2 + 4 = 3, and two 1 + 2 + 4 = 7.
    assert sign_flip_p([1, 2, -4]) == 1.0
    assert sign_flip_p([1, -2, 4]) == 0.75
    assert sign_flip_p([1, 2, 4]) == 0.25 == smallest_sign_flip_p(3)


def test_sign_flip_floor_at_five_seeds_is_one_sixteenth() -> None:
    assert sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5]) == smallest_sign_flip_p(5) == 0.0625


@pytest.mark.filterwarnings("error")
def test_too_few_values_give_nan_and_no_warning() -> None:
    one, none = mean_interval([0.7]), mean_interval([])
    assert (one.n, one.mean) == (1, 0.7)
    assert np.isnan([one.low, one.high, one.half_width, none.mean, none.low, none.high]).all()
    assert np.isnan([paired_t_p([]), paired_t_p([1.0]), sign_flip_p([]), sign_flip_p(np.ones(21))]).all()
    assert paired_test([], []).difference.n == 0


@pytest.mark.filterwarnings("error")
def test_equal_differences_are_no_evidence() -> None:
    # 0.9 - 0.8 and 0.7 - 0.6 differ in the last bit only; dividing by that spread would give p = 1e-60.
    assert np.isnan(paired_test([0.9, 0.7, 0.5], [0.8, 0.6, 0.4]).p_t)


def test_only_seeds_of_both_sides_count() -> None:
    found = paired_test([1.0, np.nan, 3.0, 5.0], [0.0, 0.0, np.nan, 2.0])
    assert (found.difference.n, found.difference.mean) == (2, 2.0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one value per seed"):
        paired_test([1.0, 2.0], [1.0])


def test_half_width_works_on_arrays_and_leaves_single_runs_undefined() -> None:
    widths = half_width([1, 5, 0], [np.nan, 1.0, np.nan])
    assert np.isnan(widths[[0, 2]]).all()
    assert widths[1] == pytest.approx(2.776445 / np.sqrt(5), rel=1e-6)


def test_t_intervals_cover_at_five_seeds_and_normal_ones_do_not() -> None:
    samples = np.random.default_rng(0).normal(size=(20_000, 5))
    distance, sd = np.abs(samples.mean(axis=1)), samples.std(axis=1, ddof=1)
    error = 3 * np.sqrt(0.95 * 0.05 / 20_000)  # three binomial standard errors
    assert np.mean(distance <= half_width(5, sd)) == pytest.approx(0.95, abs=error)
    # P(|t(4)| <= 1.96) = 0.8784: the usual 1.96 standard errors are not a 95% interval of five seeds.
    assert np.mean(distance <= 1.96 * sd / np.sqrt(5)) == pytest.approx(0.8784, abs=3 * np.sqrt(0.88 * 0.12 / 20_000))


def test_interval_half_width() -> None:
    assert Interval(3, 1.0, 0.5, 1.5).half_width == 0.5


# Plant heights, cross-fertilised minus self-fertilised, in eighths of an inch (Darwin's maize, in Fisher, The Design of
# Experiments, 1935, sections 17 to 21).
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_darwins_maize_gives_fishers_count() -> None:
    # Section 21: in 863 of the 32,768 patterns the sum is 314 or more; t = 2.148, P a little below 5 per cent.
    assert sign_flip_p(MAIZE) == 2 * 863 / 32768
    assert paired_t_p(MAIZE) == pytest.approx(0.0497, abs=5e-5)


# Depression factor of nine patients before and after a tranquilizer (Hollander and Wolfe, Nonparametric Statistical
# Methods, 1973, pages 29 to 33; the example of R's wilcox.test).
BEFORE = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
AFTER = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])


def test_signed_ranks_give_the_published_p() -> None:
    assert wilcoxon_p(BEFORE - AFTER) == pytest.approx(2 * 0.01953, abs=1e-5)  # V = 40, one-sided p = 0.019


def test_signed_ranks_agree_with_scipy_where_it_is_exact() -> None:
    for n in (5, 8, 12):
        sample = np.random.default_rng(n).normal(0.4, 1.0, size=n)
        assert wilcoxon_p(sample) == pytest.approx(scipy_stats.wilcoxon(sample, method="exact").pvalue)


def test_signed_ranks_with_ties_and_zeros_by_hand() -> None:
    # 0 is left out; 1, 1, -1 share rank 2 and 3 has rank 4. Sums of the eight patterns of 2 2 2 4: 10 6 6 2 6 2 2 -2,
    # and mirrored; the observed |2 + 2 - 2 + 4| = 6 is reached by 4 of them.
    assert wilcoxon_p([0.0, 1.0, 1.0, -1.0, 3.0]) == 0.5
    assert wilcoxon_p([0.1, 0.3 - 0.2, 0.4 - 0.3, 0.5]) == smallest_sign_flip_p(4)
    assert np.isnan(wilcoxon_p([0.0, 0.0]))


def test_the_smallest_p_of_signed_ranks_is_that_of_sign_flips() -> None:
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5]) == smallest_sign_flip_p(5)


def test_holm_rejects_what_the_published_example_does() -> None:
    # 15 p values of Benjamini and Hochberg, J. R. Statist. Soc. B 57, 1995, section 4: control of the familywise error
    # at 0.05 rejects the first three. Step-down by hand: 15, 14, 13 and 12 times the first four.
    p = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
        *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
    ]
    corrected = holm(p)
    assert corrected[:4] == pytest.approx([0.0015, 0.0056, 0.0247, 0.1140])
    assert (corrected <= 0.05).sum() == 3
    assert (np.diff(corrected) >= 0).all()
    assert corrected.max() == 1.0


def test_holm_is_that_of_statsmodels_to_the_bit_without_its_collection_of_garbage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    for p in (random.random(9), random.random(30) ** 4, np.round(random.random(20), 1), [0.5]):
        theirs = multipletests(p, method="holm")[1]
        with monkeypatch.context() as patch:
            patch.setattr(gc, "collect", lambda: pytest.fail("0.15 s per call in a process that has imported torch"))
            assert np.array_equal(holm(p), theirs)


def test_holm_does_not_count_what_was_not_tested() -> None:
    assert holm([0.01, np.nan, 0.03]) == pytest.approx([0.02, np.nan, 0.03], nan_ok=True)
    assert np.isnan(holm([np.nan])).all()
    assert holm([]).shape == (0,)


# Ratings of two films by ten people (Lakens, Frontiers in Psychology 4:863, 2013, table 1).
FILM_1 = np.array([9, 7, 8, 9, 8, 9, 9, 10, 9, 9], dtype=float)
FILM_2 = np.array([9, 6, 7, 8, 7, 9, 8, 8, 8, 7], dtype=float)


def test_effect_size_gives_the_published_one_before_correction() -> None:
    # d_z = 1.50 there; Hedges' exact factor with 9 degrees of freedom is 0.9139 (about 1 - 3 / (4 * 9 - 1) = 0.9143).
    assert paired_t_p(FILM_1 - FILM_2) == pytest.approx(2 * scipy_stats.t.sf(4.743416, 9))
    assert effect_size(FILM_1 - FILM_2) == pytest.approx(1.50 * 0.9139, abs=1e-3)
    assert effect_size(FILM_2 - FILM_1) == -effect_size(FILM_1 - FILM_2)


def test_effect_size_is_unbiased_at_five_seeds() -> None:
    samples = np.random.default_rng(1).normal(0.5, 1.0, size=(20_000, 5))
    # sd of d_z at n=5 is about 0.75: three standard errors of the mean are 0.016. Uncorrected it would be 0.627.
    assert np.mean([effect_size(sample) for sample in samples]) == pytest.approx(0.5, abs=0.016)


def test_probability_of_improvement_by_hand() -> None:
    # 3 beats 1, 2; 2 beats 1 and ties with 2; 1 ties with 1: 2 + 1.5 + 0.5 of 6
    assert probability_of_improvement([1, 2, 3], [1, 2]) == pytest.approx(4 / 6)
    assert probability_of_improvement([1, np.nan], [0, np.nan]) == 1.0
    assert np.isnan(probability_of_improvement([], [1.0]))
    a, b = np.random.default_rng(2).normal(size=(2, 9))
    assert probability_of_improvement(a, b) == pytest.approx(scipy_stats.mannwhitneyu(a, b).statistic / 81)


def test_smallest_detectable_effect_is_the_textbooks() -> None:
    # Cohen's medium effect d_z = 0.5 needs 34 pairs for 80 % power, two-sided at 0.05 (as G*Power's manual has it).
    unit = np.array([-1.0, 1.0] * 17) / np.sqrt(34 / 33)  # deviation 1, n = 34
    assert smallest_detectable(unit) == pytest.approx(0.5, abs=0.006)
    assert smallest_detectable(3 * unit) == pytest.approx(3 * smallest_detectable(unit))


def test_smallest_detectable_effect_is_found_four_times_in_five() -> None:
    deviation = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    effect = smallest_detectable(deviation) / deviation.std(ddof=1)
    samples = np.random.default_rng(3).normal(effect, 1.0, size=(20_000, 5))
    t = samples.mean(axis=1) / (samples.std(axis=1, ddof=1) / np.sqrt(5))
    found = np.mean(np.abs(t) > scipy_stats.t.ppf(0.975, 4))
    assert found == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / 20_000))


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_intervals(hits: int, trials: int, low: float, high: float) -> None:
    # Newcombe, Statistics in Medicine 17, 1998, table I, method 3.
    assert wilson(hits, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.filterwarnings("error")
def test_too_few_pairs_have_neither_effect_nor_power() -> None:
    for values in ([], [1.0]):
        assert np.isnan([effect_size(values), smallest_detectable(values)]).all()
    assert np.isnan(effect_size([1.0, 2.0]))  # the correction with one degree of freedom is 0
    assert np.isnan([effect_size([0.1 + 0.2, 0.3, 0.3]), smallest_detectable([0.1 + 0.2, 0.3, 0.3])]).all()
    assert smallest_detectable([1.0, 2.0]) > 0
    assert np.isnan(wilson(0, 0)).all()


def test_sign_flip_and_wilcoxon_keep_their_level() -> None:
    samples = np.random.default_rng(4).uniform(-1, 1, size=(4_000, 6))  # symmetric, not normal
    for test in (sign_flip_p, wilcoxon_p):
        found = np.mean([test(sample) <= 0.05 for sample in samples])
        # 2 / 64 = 0.031 is the only p below 0.05 that they can reach at n=6
        assert found == pytest.approx(2 / 64, abs=3 * np.sqrt(0.031 * 0.97 / 4_000))
