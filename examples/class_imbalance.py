"""Rare classes and wrong labels: class weights, sample weights, γ and its threshold.

    python examples/class_imbalance.py

Three overlapping classes of 1800, 150 and 50 points; half of the labels are guesses, and nearly
half of those wrong. A linear classifier is trained in several ways, and its recall of each class
taken on new points with the right labels, as many of each class.

- ``weight``, the inverse of a class's share, is what finds the rarest class at all. γ alone does
  not: it cannot tell what is rare from what is wrong.
- Most labels that say a rare class are wrong, and the weights make them loud. γ = 0.8 beside the
  weights turns the wrong ones down.
- ``threshold`` keeps every point's gradient weight at 0.2 or more: between γ and cross-entropy.
- ``sample_weight`` is for who knows which labels are guesses, and gives those a tenth of the
  weight. It helps about as much as γ does without knowing; both together help no more.
"""

import numpy as np

import gce

CENTRES = np.array([[0.0, 0.0], [2.5, 0.0], [0.0, 2.5]])
CLASSES = len(CENTRES)


def sample(rng, counts):
    """Points with a constant [N, 3], and their classes [N]."""
    classes = np.repeat(np.arange(CLASSES), counts)
    points = CENTRES[classes] + rng.standard_normal((len(classes), 2))
    return np.insert(points, 2, 1, axis=1), classes


def train(points, labels, gamma, steps=300, learning_rate=1.0, **options):
    """Fit the matrix by gradient descent on all points."""
    matrix = np.zeros((points.shape[1], CLASSES))
    for _ in range(steps):
        _, grad = gce.loss_and_grad(points @ matrix, labels, gamma, **options)
        matrix -= learning_rate * points.T @ grad
    return matrix


def main(seed=0):
    """Print the recalls of each way, and return them."""
    rng = np.random.default_rng(seed)
    points, classes = sample(rng, [1800, 150, 50])
    new_points, new_classes = sample(rng, [3000] * CLASSES)

    guessed = rng.random(len(classes)) < 0.5
    wrong = guessed & (rng.random(len(classes)) < 0.45)
    labels = np.where(wrong, (classes + rng.integers(1, CLASSES, len(classes))) % CLASSES, classes)
    counts = np.bincount(labels)
    rare = counts.sum() / (CLASSES * counts)
    sure = np.where(guessed, 0.1, 1.0)

    print(f"labels by class: {counts}, of them wrong: {np.bincount(labels[wrong])}")
    print(f"class weights: {rare.round(2)}")
    ways = {
        "cross-entropy": (0.0, {}),
        "γ = 0.8": (0.8, {}),
        "weight": (0.0, {"weight": rare}),
        "weight, γ = 0.8": (0.8, {"weight": rare}),
        "weight, γ = 0.8, b = 0.2": (0.8, {"weight": rare, "threshold": 0.2}),
        "weight, sample_weight": (0.0, {"weight": rare, "sample_weight": sure}),
        "weight, sample_weight, γ = 0.8": (0.8, {"weight": rare, "sample_weight": sure}),
    }
    results = {}
    for way, (gamma, options) in ways.items():
        found = (new_points @ train(points, labels, gamma, **options)).argmax(axis=1)
        recall = np.array([(found == k)[new_classes == k].mean() for k in range(CLASSES)])
        results[way] = recall
        print(f"{way:31} recall {recall.round(3)}   mean {recall.mean():.3f}")
    return results


if __name__ == "__main__":
    main()
