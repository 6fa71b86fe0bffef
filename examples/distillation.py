"""Distillation: a teacher's probabilities as targets, softened by a temperature.

    python examples/distillation.py

A linear classifier of 2,000 points teaches another, which has 150 points. Float ``targets`` of the
logits' shape are probabilities. Both softmaxes are taken at the temperature: the student's by
dividing its logits, and the gradient, once.

- The student that has only classes, its points' own or those the teacher says, is far behind. From
  the teacher's probabilities it learns nearly all the teacher knows: the two are of one kind, so
  that it can. With temperature 2 as many steps lead closer.
- KL, the divergence from the teacher's distribution, is a difference of two losses at γ = 0.
- γ > 0 is the wrong choice here: of a distribution it learns the probable classes and turns away
  from the rest. The student is more confident than the teacher, and further from it.
"""

import numpy as np

import gce

CLASSES, DIMENSIONS = 10, 40


def sample(rng, centres, rows):
    """Points [N, D] and their classes [N]."""
    classes = rng.integers(0, CLASSES, rows)
    points = centres[classes] + rng.standard_normal((rows, DIMENSIONS))
    return points.astype(np.float32), classes


def softmax(logits):
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def train(points, targets, gamma=0.0, temperature=1.0, steps=300, learning_rate=1.0):
    """Fit the matrix to classes, or to probabilities, by gradient descent."""
    matrix = np.zeros((DIMENSIONS, CLASSES), dtype=np.float32)
    for _ in range(steps):
        _, grad = gce.loss_and_grad(points @ matrix / temperature, targets, gamma)
        # The chain rule gives grad / temperature; times temperature², so that steps stay as large.
        matrix -= learning_rate * temperature * points.T @ grad
    return matrix


def main(seed=0):
    """Print how each student does, and return it."""
    rng = np.random.default_rng(seed)
    centres = 0.4 * rng.standard_normal((CLASSES, DIMENSIONS))
    teacher = train(*sample(rng, centres, 2000))
    points, classes = sample(rng, centres, 150)
    new, new_classes = sample(rng, centres, 4000)

    said = points @ teacher
    students = {
        "the teacher": teacher,
        "classes": train(points, classes),
        "the teacher's classes": train(points, said.argmax(axis=1)),
        "probabilities": train(points, softmax(said)),
    }
    for gamma in (0.0, 0.1, 0.5):
        way = f"probabilities, T = 2, γ = {gamma}"
        students[way] = train(points, softmax(said / 2), gamma, temperature=2)

    results = {}
    expected = softmax(new @ teacher)
    entropy = gce.loss(new @ teacher, expected, 0.0)
    for way, matrix in students.items():
        logits = new @ matrix
        accuracy = (logits.argmax(axis=1) == new_classes).mean()
        divergence = gce.loss(logits, expected, 0.0) - entropy
        confidence = softmax(logits).max(axis=1).mean()
        results[way] = accuracy, divergence, confidence
        print(
            f"{way:29} accuracy {accuracy:.3f}   KL {divergence:.3f}   confidence {confidence:.3f}"
        )
    return results


if __name__ == "__main__":
    main()
