"""A γ for each row, learnt at a price.

    python examples/learn_gamma.py

The loss falls as γ grows, whatever the row: learnt by ``gce.loss_gamma_grad`` alone, every γ goes
to 1, as the first line of the table shows. So each row's γ has a price, and row and model minimize

    sum over rows of  L(row; γ of the row) + price · γ of the row,    0 ≤ γ ≤ 1.

A row stays at cross-entropy unless the loss' slope in γ, which is large for an improbable target
and near 0 for a probable one, is worth the price. A linear classifier of few points in many
dimensions, 35 % of whose labels are wrong, is trained so, every γ beginning at 0. The price is
chosen by accuracy on held-out labels, as many of them wrong; so is, for comparison, one γ for all
rows. What was chosen is tested on new points with the right labels.

The mean γ becomes two thirds for the wrong labels and nearly 0 for the right ones. Any price from
0.1 to 0.5 does about as well as the best single γ: far better than cross-entropy, but no better
than γ = 1 here, whose model doubts about as many labels, and as rightly. Nearly a third of the
wrong labels is learnt by both all the same.
"""

import numpy as np

import gce

CLASSES, DIMENSIONS, WRONG = 5, 60, 0.35


def sample(rng, centres, rows):
    """Points [N, D], their classes, and labels of which some are wrong."""
    classes = rng.integers(0, CLASSES, rows)
    points = centres[classes] + rng.standard_normal((rows, DIMENSIONS))
    other = (classes + rng.integers(1, CLASSES, rows)) % CLASSES
    return points.astype(np.float32), classes, np.where(rng.random(rows) < WRONG, other, classes)


def train(points, labels, gamma=0.0, price=None, steps=400, learning_rate=1.0, gamma_rate=0.5):
    """Fit the matrix, and each row's γ if that has a price: both by gradient descent."""
    matrix = np.zeros((DIMENSIONS, CLASSES), dtype=np.float32)
    gamma = np.full(len(labels), gamma)
    for _ in range(steps):
        logits = points @ matrix
        _, grad = gce.loss_and_grad(logits, labels, gamma)
        if price is not None:
            slope = gce.loss_gamma_grad(logits, labels, gamma, reduction="sum")  # one per row
            gamma = np.clip(gamma - gamma_rate * (slope + price), 0.0, 1.0)
        matrix -= learning_rate * points.T @ grad
    return matrix, gamma


def main(seed=0):
    """Print accuracies and learnt γ of each price, and return them."""
    rng = np.random.default_rng(seed)
    centres = 0.35 * rng.standard_normal((CLASSES, DIMENSIONS))
    points, classes, labels = sample(rng, centres, 400)
    held_out, _, held_out_labels = sample(rng, centres, 2000)
    new, new_classes, _ = sample(rng, centres, 4000)
    wrong = labels != classes

    ways = {f"price {price}": {"price": price} for price in (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)}
    ways |= {f"γ = {gamma}": {"gamma": gamma} for gamma in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)}
    trained = {way: train(points, labels, **options) for way, options in ways.items()}

    results = {}
    for way, (matrix, gamma) in trained.items():
        agreeing = ((held_out @ matrix).argmax(axis=1) == held_out_labels).mean()
        means = gamma[wrong].mean(), gamma[~wrong].mean()
        results[way] = agreeing, *means
        print(
            f"{way:10} held-out {agreeing:.3f}   mean γ where the label is wrong {means[0]:.2f}, "
            f"right {means[1]:.2f}"
        )

    best = {}
    for kind in ("price", "γ"):
        best[kind] = max((way for way in ways if kind in way), key=lambda way: results[way][0])
    print(f"new points, and labels in doubt, where {wrong.sum()} of {len(labels)} are wrong:")
    for way in ("γ = 0.0", *best.values()):
        matrix, gamma = trained[way]
        accuracy = ((new @ matrix).argmax(axis=1) == new_classes).mean()
        doubted = gce.row_stats(points @ matrix, labels).target_log_prob < np.log(0.5)
        results["new", way] = accuracy, doubted.sum(), (doubted & wrong).sum()
        text = "{:.3f}, {} labels of probability < 1/2, of which {} are wrong"
        print(f"{way:10} accuracy", text.format(*results["new", way]))
    return {**results, "best": best, "wrong": wrong.sum()}


if __name__ == "__main__":
    main()
