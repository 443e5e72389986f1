"""Label inference: what the gradients that come from the side with the labels tell of them.

In u_shaped the labels are the clients' secret, and the gradient of the features goes up; elsewhere the cut gradient is
looked at, as if its reader had no labels.

    norm        one class against the others by the gradient's length alone: the area under the curve, mean over classes
    cosine      each sample gets the label of that known sample, one of each class, whose gradient points most alike
    clusters    k-means of the directions; each cluster is the class that fits best

The guess is .5 for an area, and the most frequent class for the others.

Source: Li et al. 2022, "Label leakage and protection in two-party split learning", arXiv:2102.08504 (norm and cosine);
clusters as in Liu and Lyu 2022, "Clustering label inference attack against practical split learning".
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from splitlearn.errors import UserError
from splitlearn.privacy.attacks.attack import Attack, Found, Scene


class LabelInference(Attack):
    def run(self, scene: Scene, seed: int) -> Found:
        _, gradients = scene.channel("feature_gradient", "gradient")
        if any(one["targets"] is None for one in scene.seen):
            raise UserError("the labels are not kept: run with observe.inputs=true")
        labels = torch.cat([one["targets"].long() for one in scene.seen])
        if labels.dim() != 1 or any(
            len(one["targets"]) != len(gradient) for one, gradient in zip(scene.seen, gradients, strict=True)
        ):
            raise UserError("label inference is for samples of one shape with a label each")
        rows = torch.cat([gradient.flatten(1).float() for gradient in gradients])
        is_there = rows.norm(dim=1) > 0
        rows, labels = rows[is_there], labels[is_there]
        prior = labels.bincount().max().item() / len(labels)
        figures = {
            "norm_auc": norm_auc(rows, labels),
            "cosine": cosine_accuracy(rows, labels, torch.Generator().manual_seed(seed)),
            "clusters": cluster_accuracy(rows, labels, seed),
        }
        return Found(figures, {"norm_auc": 0.5, "cosine": prior, "clusters": prior})


def norm_auc(rows: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the area under the curve by which the norm tells one from all others; .5 to 1."""
    from sklearn.metrics import roc_auc_score

    norms, areas = rows.norm(dim=1).numpy(), []
    for label in labels.unique():
        area = roc_auc_score((labels == label).numpy(), norms)
        areas.append(max(area, 1 - area))
    return float(np.mean(areas))


def cosine_accuracy(rows: Tensor, labels: Tensor, generator: torch.Generator) -> float:
    """Of all but the known samples, one of each class, drawn at random."""
    directions = F.normalize(rows, dim=1)
    order = torch.randperm(len(rows), generator=generator)
    known = torch.stack([order[labels[order] == label][0] for label in labels.unique()])
    others = torch.ones(len(rows), dtype=torch.bool)
    others[known] = False
    nearest = (directions[others] @ directions[known].T).argmax(1)
    return (labels[known][nearest] == labels[others]).float().mean().item()


def cluster_accuracy(rows: Tensor, labels: Tensor, seed: int) -> float:
    """With as many clusters as classes, and the assignment of clusters to classes that fits best."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans

    classes, labels = labels.unique(return_inverse=True)
    number = len(classes)
    clusters = KMeans(number, n_init=4, random_state=seed).fit_predict(F.normalize(rows, dim=1).numpy())
    counts = np.zeros((number, number), dtype=np.int64)
    np.add.at(counts, (clusters, labels.numpy()), 1)
    return counts[linear_sum_assignment(-counts)].sum() / len(labels)
