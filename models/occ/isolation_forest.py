"""The isolation forest: grown by scikit-learn, remembered and walked as arrays."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.blocks import by_blocks
from models.occ.flattening import ANY_WEIGHT, choose_rows, flatten, whole_number
from models.state import State

_LARGEST = np.finfo(np.float32).max


def average_path_length(n: NDArray[Any]) -> NDArray[np.float64]:
    """Return c(n), the mean depth of a failed search among n rows: 2 H(n - 1) - 2 (n - 1) / n (equation 1)."""
    n = np.asarray(n, dtype=np.float64)
    many = np.maximum(n, 3.0)
    length = 2.0 * (np.log(many - 1.0) + np.euler_gamma) - 2.0 * (many - 1.0) / many
    averages: NDArray[np.float64] = np.where(n > 2.0, length, (n == 2.0).astype(np.float64))
    return averages


class IsolationForest:
    """2^(-E h(z) / c(n)): how few random cuts part a row from the others.

    Liu, Ting, Zhou, "Isolation Forest" (2008), equation 2: h the depth of a row's leaf and c of the rows in it, E the
    mean over trees. The score is above 0, at most 1, and does not grow any more outside the range of the fitted rows.
    Rows of weight 0 are left out; of the others scikit-learn draws each tree's sample by weight (from 1.8 on).

    Parameters
    ----------
    n_estimators
        Trees, at least 1. Time grows with it, noise falls with its root.
    max_samples
        Rows that a tree is grown on, at least 1; capped at the number of fitted rows.
    seed
        Draws samples and cuts.

    Examples
    --------
    >>> Z = np.random.default_rng(0).normal(size=(500, 3))
    >>> forest = IsolationForest().fit(Z)
    >>> bool(forest.score(np.full((1, 3), 5.0))[0] > forest.score(Z[:50]).max())
    True
    """

    name: ClassVar[str] = "isolation_forest"

    def __init__(self, *, n_estimators: int = 100, max_samples: int = 256, seed: int = 0) -> None:
        self.n_estimators = whole_number("n_estimators", n_estimators)
        self.max_samples = whole_number("max_samples", max_samples)
        self.seed = whole_number("seed", seed, least=0)
        self.nodes_: _Nodes | None = None

    def fit(self, Z: NDArray[Any], weights: NDArray[np.float64] | None = None) -> Self:
        """Grow the trees on ``(n, d)`` or ``(n, m, d)`` embeddings, n ≥ 1, in float32."""
        rows, counts = choose_rows(len(Z), weights, least_weight=ANY_WEIGHT)
        X = _single(flatten(Z))
        X = X if len(rows) == len(X) else X[rows]
        n = min(self.max_samples, len(X))
        from sklearn.ensemble import IsolationForest as SklearnForest

        forest = SklearnForest(n_estimators=self.n_estimators, max_samples=n, random_state=self.seed)
        is_weighted = bool((counts != counts[0]).any())
        forest.fit(X, sample_weight=counts if is_weighted else None)
        self.nodes_ = _Nodes.of([tree.tree_ for tree in forest.estimators_], n)
        return self

    def score(self, Z: NDArray[Any]) -> NDArray[np.float64]:
        """Return how easily every row is isolated, ``(n,)``, 0 to 1; higher is more anomalous.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        nodes, n_trees = self._fitted(), self.n_estimators
        return by_blocks(lambda block: np.exp2(-nodes.path_lengths(_single(block), n_trees)), flatten(Z))

    def state(self) -> State:
        """Return all that was learned; :meth:`from_state` reads it."""
        nodes = self._fitted()
        values = {"n_estimators": self.n_estimators, "max_samples": self.max_samples, "seed": self.seed}
        arrays: dict[str, NDArray[Any]] = {
            "child": nodes.child.astype(np.int32),
            "feature": nodes.feature.astype(np.int32),
            "threshold": nodes.threshold,
            "path_length": nodes.path_length,
        }
        return State(values, arrays)

    @classmethod
    def from_state(cls, state: State) -> IsolationForest:
        """Read what :meth:`state` returned; ValueError if the nodes are no trees."""
        forest = cls(**state.values)
        forest.nodes_ = _Nodes(
            state.array("child", 1).astype(np.intp),
            state.array("feature", 1).astype(np.intp),
            state.array("threshold", 1),
            state.array("path_length", 1),
        )
        if len(forest.nodes_.child) < forest.n_estimators:
            raise ValueError(f"there are {len(forest.nodes_.child)} nodes; allowed: one a tree or more")
        return forest

    def _fitted(self) -> _Nodes:
        if self.nodes_ is None:
            raise RuntimeError("IsolationForest is not fitted; call fit first")
        return self.nodes_


class _Nodes:
    """The nodes of all trees, level by level: first the roots, then their children, then theirs.

    Parameters
    ----------
    child
        ``(N,)``: the number of the left child, to which the right one is next; of a leaf, its own.
    feature, threshold
        ``(N,)``: go right where this column is above this float32; at a leaf nothing is.
    path_length
        ``(N,)``: depth + c(rows in the node), over the number of trees and c(rows of a tree), so that the sum over
        trees is the exponent.
    """

    def __init__(
        self,
        child: NDArray[np.intp],
        feature: NDArray[np.intp],
        threshold: NDArray[np.float32],
        path_length: NDArray[np.float64],
    ) -> None:
        n = len(child)
        if not len(feature) == len(threshold) == len(path_length) == n:
            raise ValueError("child, feature, threshold and path_length must have a value a node each")
        own = np.arange(n)
        is_inner = child != own
        if (child < own).any() or (child[is_inner] > n - 2).any() or (feature < 0).any():
            raise ValueError("array 'child' or 'feature' is no forest; allowed: children after parents, columns from 0")
        self.child, self.feature, self.threshold, self.path_length = child, feature, threshold, path_length
        # A level is at least one step: children come after their parents.
        self.n_levels = 0
        level = np.flatnonzero(is_inner)
        while len(level):
            self.n_levels += 1
            level = np.unique(np.concatenate([child[level], child[level] + 1]))
            level = level[is_inner[level]]

    @classmethod
    def of(cls, trees: list[Any], n_samples: int) -> _Nodes:
        """Lay out scikit-learn's trees, grown on `n_samples` rows each."""
        starts = np.cumsum([0, *(tree.node_count for tree in trees)])
        offset = np.repeat(starts[:-1], np.diff(starts))
        left = np.concatenate([tree.children_left for tree in trees])
        right = np.concatenate([tree.children_right for tree in trees]) + offset
        is_leaf = left < 0
        left = left + offset

        level, levels = starts[:-1], []
        while len(level):
            levels.append(level)
            inner = level[~is_leaf[level]]
            level = np.stack([left[inner], right[inner]], axis=1).ravel()
        old = np.concatenate(levels)
        depth = np.repeat(np.arange(len(levels)), [len(level) for level in levels])
        new = np.empty(len(old), dtype=np.intp)
        new[old] = np.arange(len(old))

        is_leaf = is_leaf[old]
        child = np.where(is_leaf, np.arange(len(old)), new[np.where(is_leaf, 0, left[old])])
        feature = np.where(is_leaf, 0, np.concatenate([tree.feature for tree in trees])[old])
        threshold = _round_down(np.concatenate([tree.threshold for tree in trees])[old])
        n_rows = np.concatenate([tree.n_node_samples for tree in trees])[old]
        longest = float(average_path_length(np.array(n_samples)))
        # A tree of one row parts nothing; scikit-learn then takes the exponent 1.
        path_length = (depth + average_path_length(n_rows)) / longest if longest else np.ones(len(old))
        return cls(
            child.astype(np.intp),
            feature.astype(np.intp),
            np.where(is_leaf, _LARGEST, threshold).astype(np.float32),
            path_length / len(trees),
        )

    def path_lengths(self, X: NDArray[np.float32], n_trees: int) -> NDArray[np.float64]:
        """Return the sum over trees of the path lengths of ``(n, d)`` float32 rows, ``(n,)``."""
        n, d = X.shape
        values = X.ravel()
        row = (np.arange(n) * d)[:, None]
        node = np.broadcast_to(np.arange(n_trees), (n, n_trees))
        for _ in range(self.n_levels):
            place = self.feature.take(node)
            place += row
            is_right = values.take(place) > self.threshold.take(node)
            node = self.child.take(node)
            node += is_right
        lengths: NDArray[np.float64] = self.path_length.take(node).sum(axis=1)
        return lengths


def _single(Z: NDArray[Any]) -> NDArray[np.float32]:
    """Return finite float32 in memory order."""
    return np.ascontiguousarray(np.clip(Z, -_LARGEST, _LARGEST), dtype=np.float32)


def _round_down(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 at most a float64: no float32 lies between, so comparisons with either agree."""
    rounded = threshold.astype(np.float32)
    return np.where(rounded > threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded)
