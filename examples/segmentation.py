"""Segmentation: logits [N, C, H, W], labels of 8 bits, borders that do not count, wrong labels.

    python examples/segmentation.py

A linear classifier of pixels is trained on synthetic images of disks, with three kinds of labels,
at γ = 0 (cross-entropy) and γ = 0.8, and tested on new images with the right labels.

- ``axis=1``: the classes stay where they are, and the gradient overwrites the logits (``out=``).
  It is compared with logits whose class axis was moved to the end.
- ``ignore_index=255`` leaves out the pixels along borders. The labels are uint8 as they come.
- Where 40 % of the labels are those of the next class, γ = 0.8 does far better. Where they are
  right, there is nothing to gain. Where 40 % of each object is labelled background, it does worse:
  what training finds improbable from the start it may never learn, here every object.
"""

import numpy as np

import gce

CLASSES, IMAGES, SIZE = 4, 8, 32
BORDER = 255
COLOURS = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]])


def images(rng):
    """Colours and a constant [N, 4, H, W] in float32, and the true classes [N, H, W] in uint8."""
    y, x = np.mgrid[:SIZE, :SIZE]
    classes = np.zeros((IMAGES, SIZE, SIZE), dtype=np.uint8)
    for image in classes:
        for disk in (1, 2, 3) * 2:
            (row, column), radius = rng.integers(0, SIZE, 2), rng.integers(4, 9)
            image[(y - row) ** 2 + (x - column) ** 2 < radius**2] = disk
    colours = np.moveaxis(COLOURS[classes], -1, 1)
    colours = colours + 0.5 * rng.standard_normal(colours.shape)
    return np.insert(colours, 3, 1, axis=1).astype(np.float32), classes


def without_borders(classes):
    """Labels that are BORDER where the pixel above or to the left is of another class."""
    labels = classes.copy()
    labels[:, 1:][classes[:, 1:] != classes[:, :-1]] = BORDER
    labels[:, :, 1:][classes[:, :, 1:] != classes[:, :, :-1]] = BORDER
    return labels


def predict(kernel, pixels):
    """Logits [N, C, H, W]: a convolution with a kernel of one pixel."""
    return np.einsum("kf,nfhw->nkhw", kernel, pixels, optimize=True)


def train(pixels, labels, gamma, steps=200, learning_rate=2.0):
    """Fit the kernel by gradient descent on all images."""
    kernel = np.zeros((CLASSES, pixels.shape[1]), dtype=np.float32)
    for _ in range(steps):
        logits = predict(kernel, pixels)
        _, grad = gce.loss_and_grad(logits, labels, gamma, axis=1, ignore_index=BORDER, out=logits)
        kernel -= learning_rate * np.einsum("nkhw,nfhw->kf", grad, pixels, optimize=True)
    return kernel


def main(seed=0):
    """Print each comparison, and return its numbers."""
    rng = np.random.default_rng(seed)
    pixels, classes = images(rng)
    new_pixels, new_classes = images(rng)
    labels = without_borders(classes)

    logits = rng.standard_normal((IMAGES, CLASSES, SIZE, SIZE)).astype(np.float32)
    last = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    _, grad_last = gce.loss_and_grad(last, labels, 0.8, ignore_index=BORDER)
    _, grad = gce.loss_and_grad(logits, labels, 0.8, axis=1, ignore_index=BORDER, out=logits)
    same = grad is logits and np.array_equal(np.moveaxis(grad, 1, -1), grad_last)
    border = np.moveaxis(grad, 1, -1)[labels == BORDER]
    print(f"in place along axis 1, with the bits of a copy with classes last: {same}")
    print(f"{len(border)} of {labels.size} pixels are borders: gradient {abs(border).max():.1f}")

    wrong = rng.random(classes.shape) < 0.4
    kinds = {
        "right labels": classes,
        "40 % are the next class's": np.where(wrong, (classes + 1) % CLASSES, classes),
        "40 % of objects are background": np.where(wrong, 0, classes),
    }
    results = {"same": same, "border": abs(border).max(), "kinds": tuple(kinds)}
    results["background"] = (new_classes == 0).mean()
    print(f"accuracy on new images, of which {results['background']:.3f} is background:")
    for kind, given in kinds.items():
        given = np.where(labels == BORDER, BORDER, given).astype(np.uint8)
        for gamma in (0.0, 0.8):
            found = predict(train(pixels, given, gamma), new_pixels).argmax(axis=1)
            results[kind, gamma] = (found == new_classes).mean()
        print(f"{kind:31} γ = 0: {results[kind, 0.0]:.3f}   γ = 0.8: {results[kind, 0.8]:.3f}")
    return results


if __name__ == "__main__":
    main()
