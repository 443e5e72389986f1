"""Label inference: what the gradients that come from the side with the labels tell of them.

In u_shaped the labels are the clients' secret, and the gradient of the features goes up; elsewhere the cut gradient is
looked at, as if its reader had no labels, of those batches that get one.

    norm        one class against the others by the gradient's length alone: the area under the curve, mean over classes
    cosine      each sample gets the label of that known sample, one of each class, whose gradient points most alike
    clusters    k-means of the directions; each cluster is the class that fits best

The guess is what the same comes to for labels in another order, the mean over some: areas are taken to be above .5, and
clusters to be the classes that fit best, so that labels that nothing tells of come back better than by chance.

Source: Li et al. 2022, "Label leakage and protection in two-party split learning", arXiv:2102.08504 (norm and cosine);
clusters as in Liu and Lyu 2022, "Clustering label inference attack against practical split learning".
"""

from __future__ import annotations

from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splitlearn.errors import UserError
from splitlearn.privacy.attacks.attack import Attack, Found, Scene

ORDERS = 20  # of the labels, for the guess


class LabelInference(Attack):
    def run(self, scene: Scene, seed: int) -> Found:
        name, gradients = scene.channel("feature_gradient", "gradient")
        targets = [one["targets"] for one in scene.crossed(name)]
        if any(one is None for one in targets):
            raise UserError("the labels are not kept: run with observe.inputs=true")
        labels = torch.cat([one.long() for one in targets])
        if labels.dim() != 1 or any(len(one) != len(rows) for one, rows in zip(targets, gradients, strict=True)):
            raise UserError("label inference is for samples of one shape with a label each")
        rows = torch.cat([gradient.flatten(1) for gradient in gradients])
        is_there = rows.norm(dim=1) > 0
        rows, labels = rows[is_there], labels[is_there]
        norms, directions = rows.norm(dim=1), F.normalize(rows, dim=1)
        clusters = clusters_of(directions, len(labels.unique()), seed)
        draws = torch.Generator().manual_seed(seed)

        def figures(labels: Tensor) -> dict[str, float]:
            return {
                "norm_auc": norm_auc(norms, labels),
                "cosine": cosine_accuracy(directions, labels, draws),
                "clusters": cluster_accuracy(clusters, labels),
            }

        found = figures(labels)
        guesses = [figures(labels[torch.randperm(len(labels), generator=draws)]) for _ in range(ORDERS)]
        mean = {name: fmean(guess[name] for guess in guesses) for name in found}
        return Found(found, mean, num_batches=len(targets))


def norm_auc(norms: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the area under the curve by which the norm tells one from all others; .5 to 1."""
    from sklearn.metrics import roc_auc_score

    areas = []
    for label in labels.unique():
        area = roc_auc_score((labels == label).numpy(), norms.numpy())
        areas.append(max(area, 1 - area))
    return float(np.mean(areas))


def cosine_accuracy(directions: Tensor, labels: Tensor, generator: torch.Generator) -> float:
    """Of all but the known samples, one of each class, drawn at random."""
    order = torch.randperm(len(labels), generator=generator)
    known = torch.stack([order[labels[order] == label][0] for label in labels.unique()])
    others = torch.ones(len(labels), dtype=torch.bool)
    others[known] = False
    nearest = (directions[others] @ directions[known].T).argmax(1)
    return (labels[known][nearest] == labels[others]).float().mean().item()


def clusters_of(directions: Tensor, number: int, seed: int) -> np.ndarray:
    """(N,) which of so many clusters each is in."""
    from sklearn.cluster import KMeans

    return KMeans(number, n_init=4, random_state=seed).fit_predict(directions.numpy())


def cluster_accuracy(clusters: np.ndarray, labels: Tensor) -> float:
    """With the assignment of clusters, of which there are as many as classes, to classes that fits best."""
    from scipy.optimize import linear_sum_assignment

    classes, labels = labels.unique(return_inverse=True)
    number = len(classes)
    counts = np.zeros((number, number), dtype=np.int64)
    np.add.at(counts, (clusters, labels.numpy()), 1)
    return counts[linear_sum_assignment(-counts)].sum() / len(labels)
