"""What the paper publishes on pictures: AUC and AP in percent, to stand beside ours.

Yoon, Sohn, Li, Arik, Lee, Pfister, "Self-supervise, Refine, Repeat: Improving Unsupervised Anomaly Detection" (2022),
tables 2 to 7 and the text. The base is contrastive learning with distribution augmentation, for MVTec CutPaste.
"""

from __future__ import annotations

CLASSES: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar10": {
        "airplane": (90.5, 90.4, 85.3, 87.6, 68.3, 67.9, 61.3, 61.8),
        "automobile": (98.8, 98.7, 95.2, 97.9, 93.9, 94.1, 85.9, 91.5),
        "bird": (87.5, 87.1, 75.6, 84.7, 62.2, 61.7, 42.4, 57.5),
        "cat": (81.5, 80.3, 68.9, 78.5, 44.0, 42.9, 30.3, 44.9),
        "deer": (90.3, 90.2, 79.9, 87.4, 59.5, 58.8, 42.9, 53.6),
        "dog": (90.8, 90.8, 79.2, 89.6, 59.1, 59.8, 39.7, 64.5),
        "frog": (92.0, 91.4, 78.5, 87.5, 72.7, 70.4, 38.5, 73.6),
        "horse": (97.8, 97.9, 93.3, 96.0, 89.0, 89.2, 80.6, 86.2),
        "ship": (96.5, 96.4, 91.5, 95.2, 83.9, 83.7, 74.9, 79.8),
        "truck": (95.1, 95.8, 88.9, 94.7, 79.0, 81.3, 67.0, 75.8),
    },
    "fashion-mnist": {
        "t-shirt": (93.3, 93.2, 79.2, 84.7, 68.7, 67.9, 43.0, 56.8),
        "trouser": (99.2, 99.2, 92.9, 94.5, 96.5, 98.2, 78.2, 87.1),
        "pullover": (93.8, 93.8, 78.4, 90.1, 62.7, 63.6, 27.2, 57.1),
        "dress": (94.4, 94.0, 78.4, 85.8, 72.3, 71.6, 36.1, 57.3),
        "coat": (95.1, 94.9, 80.4, 88.7, 66.2, 65.6, 24.3, 50.7),
        "sandal": (95.4, 95.5, 67.6, 81.7, 70.9, 70.8, 17.8, 40.1),
        "shirt": (87.9, 87.9, 73.9, 81.0, 49.6, 49.7, 27.2, 37.6),
        "sneaker": (99.1, 99.2, 80.2, 94.7, 91.9, 92.9, 21.0, 81.6),
        "bag": (97.8, 97.6, 58.2, 68.6, 92.2, 91.8, 13.2, 20.1),
        "ankle-boot": (98.6, 98.5, 76.6, 87.1, 87.9, 86.5, 19.6, 48.0),
    },
    "mvtec": {
        "bottle": (98.0, 98.8, 94.3, 98.7, 98.8, 99.3, 94.3, 98.0),
        "cable": (77.7, 77.9, 72.9, 80.4, 81.8, 82.3, 70.8, 74.1),
        "capsule": (96.1, 97.2, 92.4, 96.8, 99.0, 99.3, 79.5, 89.8),
        "hazelnut": (97.2, 97.5, 83.5, 96.7, 97.1, 97.0, 88.8, 93.6),
        "metal_nut": (98.5, 98.6, 91.2, 98.7, 99.6, 99.6, 76.1, 92.1),
        "pill": (92.1, 91.1, 85.1, 92.1, 98.2, 97.9, 56.6, 67.3),
        "screw": (87.4, 86.8, 79.9, 86.4, 93.8, 93.6, 60.1, 63.7),
        "toothbrush": (98.5, 98.3, 98.6, 99.3, 99.2, 99.2, 97.4, 98.6),
        "transistor": (96.4, 96.7, 93.9, 95.7, 93.0, 93.7, 97.8, 97.1),
        "zipper": (99.4, 98.0, 91.1, 99.2, 99.8, 99.2, 86.1, 98.0),
        "carpet": (90.0, 90.8, 80.4, 91.2, 94.4, 95.7, 64.2, 71.6),
        "grid": (99.2, 99.7, 92.9, 99.7, 99.5, 99.8, 90.9, 99.4),
        "leather": (99.8, 99.7, 98.0, 100.0, 99.9, 99.9, 97.2, 100.0),
        "tile": (93.1, 93.3, 86.4, 92.4, 96.1, 96.4, 82.4, 86.4),
        "wood": (98.8, 98.5, 92.1, 99.0, 99.4, 99.4, 88.1, 97.2),
    },
    "dog-vs-cat": {
        "dog": (89.7, 89.2, 74.7, 79.1, 91.6, 91.0, 80.0, 84.0),
        "cat": (88.2, 88.0, 70.1, 70.7, 90.2, 89.8, 71.6, 71.5),
    },
}
"""Set → class → AUC of the base at 0 %, SRR at 0 %, base at 10 %, SRR at 10 %, and AP in the same order."""

MEANS: dict[tuple[str, float], dict[str, str]] = {
    ("cifar10", 0.06): {
        "base": "85.5 / 58.5",
        "ensemble": "86.2 / 59.9",
        "no_final": "89.0 / 67.7",
        "srr": "91.0 / 70.9",
        "otsu": "90.6 / 70.3",
        "robust_autoencoder": "63.6 / 17.4",
    },
    ("mvtec", 0.06): {
        "base": "90.5 / 84.5",
        "ensemble": "91.1 / 84.9",
        "no_final": "92.2 / 87.0",
        "srr": "93.7 / 88.7",
    },
}
"""(set, ratio) → method → mean AUC / AP over the classes (tables 6, 7 and 8)."""

_ORDER = {("base", 0.0): 0, ("srr", 0.0): 1, ("base", 0.1): 2, ("srr", 0.1): 3}


def published(dataset: str, class_name: str, ratio: float, method: str, figure: str) -> str:
    """Return the paper's AUC or AP of a class (``auc``, ``ap``), or ``-``.

    Examples
    --------
    >>> published("fashion-mnist", "sneaker", 0.1, "srr", "auc")
    '94.7'
    """
    at = _ORDER.get((method, ratio))
    row = CLASSES.get(dataset, {}).get(class_name)
    return "-" if at is None or row is None else f"{row[at + (4 if figure == 'ap' else 0)]:.1f}"
