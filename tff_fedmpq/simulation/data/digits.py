"""Handwritten digits that come with scikit-learn: no file, no download."""

import numpy as np

from tff_fedmpq.simulation.data.image_dataset import ImageDataset


def load_digits() -> ImageDataset:
    """Loads the 1,797 grey digits, 8x8 pixels and one channel.

    Grey values 0..16 become 0..255. Every fifth image, counted within each class in
    scikit-learn's order, is a test image: 1,437 and 360, the same on every machine.
    They are not augmented, because a mirrored or cropped digit can be illegible.
    """
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    grey = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    images = grey[..., np.newaxis]
    labels = digits.target.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    return ImageDataset(
        name="digits",
        source="scikit-learn digits (embedded)",
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        num_classes=10,
        model="resnet8",
    )
