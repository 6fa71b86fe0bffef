"""Properties that hold for any input, tried on random ones by hypothesis."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gce
from gce import reference

# The ISA of a test stays selected while hypothesis runs, so one fixture for all examples is right.
by_hypothesis = settings(
    max_examples=60,
    deadline=None,  # the first call of all may be slow
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Roundings: of a value of size 1, and in the logits' own precision.
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}
# Section 4's promise for a gradient of weight w. For float64 it has none: p is 2^x, and x of up to
# 1075 is rounded by half an ulp, 1.1e-13.
GRADIENT = {"float32": 5e-7, "float64": 1.2e-13}
# Its promise for a loss: relative, or absolute where the loss is tiny.
RELATIVE = {"float32": 1e-6, "float64": 1e-14}
ABSOLUTE = {"float32": 2e-7, "float64": 1e-15}
# Exponentials may be flushed to 0 below the normal numbers; V of them, up to 70, make a gradient.
TINY = {"float32": 2.0**-119, "float64": 2.0**-1015}
SCALES = st.sampled_from([0.0, 1e-3, 1.0, 5.0, 30.0])
HUGE_SCALES = st.sampled_from([0.0, 1.0, 30.0, 1e5, 1e30])


class Batch(NamedTuple):
    """A problem: the arguments, and options of one value per row."""

    logits: np.ndarray
    targets: np.ndarray
    gamma: np.ndarray
    threshold: np.ndarray

    @property
    def dtype(self) -> str:
        return self.logits.dtype.name

    def loss_and_grad(self, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        options = {"threshold": self.threshold, "reduction": "none", **options}
        loss, grad = gce.loss_and_grad(self.logits, self.targets, self.gamma, **options)
        return loss.astype(np.float64), grad.astype(np.float64)

    def weights(self) -> np.ndarray:
        """The gradient weight of each row, as a column."""
        log_p = reference.row_stats(self.logits, self.targets).target_log_prob
        return reference.grad_weight(log_p, self.gamma, self.threshold)[:, None]

    def slack(self, factor: float) -> np.ndarray:
        """So many times the promised error of a gradient, down to where exponentials underflow."""
        return factor * GRADIENT[self.dtype] * self.weights() + TINY[self.dtype]


# Without denormal γ, whose γ/p for p = 0 is no larger than 2^966, which leaves w = 1e-291, not 0.
UNIT = st.sampled_from([0.0, 1e-300, 1e-30, 1e-7, 0.1, 0.5, 1 - 1e-7, 1.0]) | st.floats(
    0.0, 1.0, allow_subnormal=False
)


@st.composite
def batches(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = ("float32", "float64"),
    scales: st.SearchStrategy[float] = SCALES,
    max_classes: int = 70,
) -> Batch:
    rows = draw(st.integers(1, 20))
    classes = draw(st.integers(1, max_classes))
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = draw(scales) * rng.normal(size=(rows, classes))
    per_row = st.lists(UNIT, min_size=rows, max_size=rows).map(np.array)
    gamma = draw(per_row)
    threshold = draw(st.just(np.zeros(rows)) | per_row)
    return Batch(logits.astype(dtype), rng.integers(0, classes, rows), gamma, threshold)


# --- softmax --------------------------------------------------------------------------------------


@given(batch=batches(), shift=st.integers(-(2**9), 2**9))
@by_hypothesis
def test_a_shift_of_a_row_changes_nothing(isa, batch, shift):
    # Logits of 2^-k and shifts of whole numbers: the sum is exact, so it is the same problem.
    step = 2.0**-10
    logits = np.round(np.clip(batch.logits, -50, 50) / step) * step
    batch = batch._replace(logits=logits.astype(batch.dtype))
    shifted = batch._replace(logits=(logits + shift).astype(batch.dtype))
    assert (shifted.logits.astype(np.float64) == logits + shift).all()
    loss, grad = batch.loss_and_grad()
    found_loss, found_grad = shifted.loss_and_grad()
    # Not bit for bit: 2^(z log2 e - k) rounds its exponent. So twice the promise.
    tolerance = {"rtol": 2 * RELATIVE[batch.dtype], "atol": 2 * ABSOLUTE[batch.dtype]}
    if batch.dtype == "float64":  # an exponent of up to 562 log2 e, rounded by 1.1e-13
        tolerance = {"rtol": 1.2e-13, "atol": 1.2e-13}
    np.testing.assert_allclose(found_loss, loss, **tolerance)
    assert (np.abs(found_grad - grad) <= batch.slack(2)).all()


@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
@by_hypothesis
def test_permuted_classes_permute_the_gradient(isa, batch, seed):
    order = np.random.default_rng(seed).permutation(batch.logits.shape[1])
    place = np.argsort(order)
    permuted = batch._replace(logits=batch.logits[:, order], targets=place[batch.targets])
    loss, grad = batch.loss_and_grad()
    found_loss, found_grad = permuted.loss_and_grad()
    # Exponentials are the same, their sum is added in another order and rounded anew: both results
    # are within the promise.
    np.testing.assert_allclose(
        found_loss, loss, rtol=2 * RELATIVE[batch.dtype], atol=2 * ABSOLUTE[batch.dtype]
    )
    assert (np.abs(found_grad - grad[:, order]) <= batch.slack(2)).all()


@given(batch=batches(scales=HUGE_SCALES))
@by_hypothesis
def test_a_gradient_adds_up_to_0(isa, batch):
    _, grad = batch.loss_and_grad()
    # V numbers, each rounded: by at most half an ulp of its size, which add up to 2 w; and each q
    # is off by a common factor, of a few roundings.
    slack = 4 * EPSILON[batch.dtype] * batch.weights()[:, 0]
    assert (np.abs(grad.sum(axis=1)) <= slack + TINY[batch.dtype]).all()


@given(batch=batches(scales=HUGE_SCALES))
@by_hypothesis
def test_signs(isa, batch):
    loss, grad = batch.loss_and_grad()
    assert (loss >= 0.0).all()
    at_target = np.arange(batch.logits.shape[1]) == batch.targets[:, None]
    assert (grad[at_target] <= 0.0).all() and (grad[~at_target] >= 0.0).all()
    assert (np.abs(grad) <= batch.weights() + batch.slack(1)).all()


# --- gamma and the threshold ----------------------------------------------------------------------


@given(batch=batches())
@by_hypothesis
def test_gamma_0_and_threshold_1_are_cross_entropy(isa, batch):
    zeros, ones = np.zeros_like(batch.gamma), np.ones_like(batch.gamma)
    cross_entropy = -gce.row_stats(batch.logits, batch.targets).target_log_prob
    loss, grad = batch._replace(gamma=zeros, threshold=zeros).loss_and_grad()
    np.testing.assert_array_equal(loss, cross_entropy)
    for gamma, threshold in ((zeros, batch.threshold), (batch.gamma, ones)):
        for value in ("primitive", "surrogate"):
            found = batch._replace(gamma=gamma, threshold=threshold).loss_and_grad(value=value)
            # At b = 1 the value is put together from L(t*) = 0 and b (log t* - ℓ) = -ℓ.
            np.testing.assert_allclose(
                found[0], loss, rtol=RELATIVE[batch.dtype], atol=ABSOLUTE[batch.dtype]
            )
            np.testing.assert_allclose(found[1], grad, rtol=EPSILON[batch.dtype], atol=0.0)


@given(batch=batches(), gammas=st.lists(UNIT, min_size=2, max_size=6))
@by_hypothesis
def test_a_larger_gamma_means_a_smaller_loss_and_weight(isa, batch, gammas):
    previous_loss, previous_grad = np.inf, np.inf
    for gamma in sorted(gammas):
        gamma = np.full_like(batch.gamma, gamma)
        loss, grad = batch._replace(gamma=gamma, threshold=0 * gamma).loss_and_grad()
        # Both losses may be off by the promise.
        slack = 2 * RELATIVE[batch.dtype] * loss + 2 * ABSOLUTE[batch.dtype]
        assert (loss <= previous_loss + slack).all()
        size = np.abs(grad)
        slack = 2 * GRADIENT[batch.dtype] * (previous_grad if np.ndim(previous_grad) else 0.0)
        assert (size <= previous_grad + slack + 2 * GRADIENT[batch.dtype] * size).all()
        previous_loss, previous_grad = loss, size


@given(batch=batches())
@by_hypothesis
def test_a_threshold_only_adds_weight(isa, batch):
    free = batch._replace(threshold=np.zeros_like(batch.threshold))
    loss, grad = batch.loss_and_grad()
    free_loss, free_grad = free.loss_and_grad()
    slack = 2 * RELATIVE[batch.dtype] * free_loss + 2 * ABSOLUTE[batch.dtype]
    assert (loss >= free_loss - slack).all()
    assert (np.abs(grad) >= np.abs(free_grad) * (1 - 2 * EPSILON[batch.dtype])).all()
    above = batch.weights() == free.weights()  # where the threshold does not act, it does nothing
    np.testing.assert_array_equal(grad[above[:, 0]], free_grad[above[:, 0]])


@given(batch=batches())
@by_hypothesis
def test_the_surrogate_has_the_same_gradient(isa, batch):
    _, grad = batch.loss_and_grad()
    loss, surrogate_grad = batch.loss_and_grad(value="surrogate")
    np.testing.assert_array_equal(surrogate_grad, grad)
    log_p = reference.row_stats(batch.logits, batch.targets).target_log_prob
    # The weight and ℓ each to a rounding or so beyond what the promise gives -ℓ.
    np.testing.assert_allclose(
        loss,
        -batch.weights()[:, 0] * log_p,
        rtol=2 * RELATIVE[batch.dtype] if batch.dtype == "float32" else 1e-13,
        atol=ABSOLUTE[batch.dtype],
    )


# --- derivatives ----------------------------------------------------------------------------------

STEP = 2.0**-17


@given(
    batch=batches(dtypes=("float64",), scales=st.sampled_from([0.1, 1.0, 5.0]), max_classes=12),
    upstream=st.floats(-2.0, 2.0),
)
@by_hypothesis
def test_the_gradient_is_that_of_the_loss(isa, batch, upstream):
    options = {"weight": np.linspace(0.5, 2.0, batch.logits.shape[1]), "reduction": "sum"}
    _, grad = batch.loss_and_grad(**options, grad_output=upstream)
    for j in range(batch.logits.shape[1]):
        step = STEP * (np.arange(batch.logits.shape[1]) == j)
        ahead, behind = (
            batch._replace(logits=batch.logits + sign * step).loss_and_grad(
                **options | {"reduction": "none"}
            )[0]
            for sign in (1, -1)
        )
        # Losses up to 40 are rounded by 4e-15 and divided by 1.5e-5: 5e-10. The third derivative is
        # below 1 for the smooth parts; where w crosses b, w has a kink: its slope times the step.
        log_p = reference.row_stats(batch.logits, batch.targets).target_log_prob
        free = reference.grad_weight(log_p, batch.gamma)
        kink = np.abs(free - batch.threshold) <= 4 * STEP
        slack = np.where(kink, 8 * STEP, 4e-9)
        error = upstream * (ahead - behind) / (2 * STEP) - grad[:, j]
        assert (np.abs(error) <= slack).all()


@given(
    log_p=st.floats(-30.0, -1e-3),
    gamma=st.floats(2.0**-7, 1 - 2.0**-7),
    threshold=st.sampled_from([0.0, 0.3]),
)
@by_hypothesis
def test_the_ufuncs_are_derivatives_of_the_loss(isa, log_p, gamma, threshold):
    # dL/dℓ = -w_b, and dL/dγ at b = 0.
    ahead, behind = (
        gce.loss_from_log_prob(log_p + sign * STEP, gamma, threshold) for sign in (1, -1)
    )
    kink = abs(gce.grad_weight(log_p, gamma, 0.0) - threshold) <= 4 * STEP
    slack = 8 * STEP if kink else 4e-9  # as above
    slope = (ahead - behind) / (2 * STEP)
    assert abs(slope + gce.grad_weight(log_p, gamma, threshold)) <= slack
    ahead, behind = (gce.loss_from_log_prob(log_p, gamma + sign * STEP, 0.0) for sign in (1, -1))
    # The third derivative in γ is at most 2/γ³ + ..., with γ - STEP.
    slack = 1e-9 + (8 / (gamma - STEP) ** 3 + 8 / (1 - gamma)) * STEP**2
    assert abs((ahead - behind) / (2 * STEP) - gce.gamma_grad(log_p, gamma)) <= slack


# --- linearity ------------------------------------------------------------------------------------


@given(batch=batches(), power=st.integers(-20, 20))
@by_hypothesis
def test_weights_multiply(isa, batch, power):
    rng = np.random.default_rng(0)
    weight = rng.random(batch.logits.shape[1])
    sample_weight = rng.random(len(batch.targets))
    loss, grad = batch.loss_and_grad()
    found_loss, found_grad = batch.loss_and_grad(weight=weight, sample_weight=sample_weight)
    factor = weight[batch.targets] * sample_weight
    # The product is formed in double and rounded once more.
    epsilon = 2 * EPSILON[batch.dtype]
    np.testing.assert_allclose(found_loss, loss * factor, rtol=epsilon, atol=0.0)
    np.testing.assert_allclose(
        found_grad, grad * factor[:, None], rtol=2 * epsilon, atol=TINY[batch.dtype]
    )
    # Powers of two are exact, apart from numbers too small.
    scaled = batch.loss_and_grad(
        weight=weight * 2.0**power, sample_weight=sample_weight, grad_output=0.5
    )
    np.testing.assert_allclose(scaled[0], found_loss * 2.0**power, rtol=0.0, atol=1e-300)
    normal = np.abs(found_grad) > TINY[batch.dtype] * 2.0**22
    wanted = found_grad * 2.0 ** (power - 1)
    np.testing.assert_array_equal(scaled[1][normal], wanted[normal])


@given(batch=batches())
@by_hypothesis
def test_reductions_are_sums_of_rows(isa, batch):
    batch.targets[::3] = -100
    sample_weight = np.random.default_rng(0).random(len(batch.targets)) + 0.1
    loss, grad = batch.loss_and_grad(sample_weight=sample_weight)
    total, grad_of_sum = batch.loss_and_grad(sample_weight=sample_weight, reduction="sum")
    np.testing.assert_array_equal(grad_of_sum, grad)
    # Rows are added before they are rounded, these after it.
    slack = 2 * EPSILON[batch.dtype]
    np.testing.assert_allclose(total, loss.sum(), rtol=slack, atol=1e-300)
    counted = sample_weight[batch.targets != -100].sum()
    mean, grad_of_mean = batch.loss_and_grad(sample_weight=sample_weight, reduction="mean")
    np.testing.assert_allclose(mean * counted, total, rtol=slack, atol=1e-300)
    np.testing.assert_allclose(
        grad_of_mean * counted, grad, rtol=2 * slack, atol=TINY[batch.dtype] * 40
    )


# --- splits and threads, bit for bit --------------------------------------------------------------


@given(batch=batches(), cut=st.integers(0, 20))
@by_hypothesis
def test_concatenated_batches(isa, batch, cut):
    whole = batch.loss_and_grad()
    rows = len(batch.targets)
    halves = [
        Batch(*(array[part] for array in batch)).loss_and_grad()
        for part in (slice(0, min(cut, rows)), slice(min(cut, rows), rows))
    ]
    for found, wanted in zip(zip(*halves, strict=True), whole, strict=True):
        assert np.concatenate(found).tobytes() == wanted.tobytes()


@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 300),
    threads=st.integers(2, 8),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    axis=st.sampled_from([0, 1]),
)
@settings(by_hypothesis, max_examples=25)
def test_any_count_of_threads(isa, seed, classes, threads, reduction, axis):
    rows = 131_072 // classes + 17  # from 131,072 logits on, a call uses the pool
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, classes) if axis else (classes, rows), np.float32)
    arguments = (logits, rng.integers(0, classes, rows), rng.random(rows))
    options = {"axis": axis, "reduction": reduction}
    one = gce.loss_and_grad(*arguments, **options, num_threads=1)
    many = gce.loss_and_grad(*arguments, **options, num_threads=threads)
    assert [x.tobytes() for x in one] == [x.tobytes() for x in many]


# --- the functions among themselves ---------------------------------------------------------------


@given(batch=batches())
@by_hypothesis
def test_row_stats_and_ufuncs_give_the_loss(isa, batch):
    stats = gce.row_stats(batch.logits, batch.targets)
    loss, _ = batch.loss_and_grad()
    found = gce.loss_from_log_prob(stats.target_log_prob, batch.gamma, batch.threshold)
    # ℓ is rounded, and near 0 -ℓ and the loss are as good as the promise.
    np.testing.assert_allclose(
        found, loss, rtol=3 * RELATIVE[batch.dtype], atol=3 * ABSOLUTE[batch.dtype]
    )
    assert (stats.argmax == batch.logits.argmax(axis=1)).all()
    largest = batch.logits.max(axis=1)
    slack = 2 * EPSILON[batch.dtype] * (np.abs(largest) + 5)
    assert (stats.logsumexp >= largest - slack).all()
    assert (stats.logsumexp <= largest + np.log(batch.logits.shape[1]) + slack).all()


def test_these_tests_run_on_the_instruction_set_they_name(isa):
    assert gce.show_config(mode="dicts")["isa"] == isa


def test_the_batches_reach_both_sides_of_the_threshold():
    sides: set[bool] = set()

    @given(batch=batches())
    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    def look(batch: Batch) -> None:
        log_p = reference.row_stats(batch.logits, batch.targets).target_log_prob
        sides.update((reference.grad_weight(log_p, batch.gamma) < batch.threshold).tolist())

    look()
    assert sides == {True, False}
