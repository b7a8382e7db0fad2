"""Small tasks on real data, as LightningModules and DataModules: for a first look, for tests and as examples."""

from lowprec_plugin.tasks.cifar import CIFAR10DataModule
from lowprec_plugin.tasks.classifier import CNN, MLP, Classifier
from lowprec_plugin.tasks.digits import DigitsDataModule
from lowprec_plugin.tasks.mnist import MNISTDataModule
from lowprec_plugin.tasks.paper import CifarCNN, PaperClassifier

__all__ = [
    "CNN", "MLP", "CIFAR10DataModule", "CifarCNN", "Classifier", "DigitsDataModule", "MNISTDataModule",
    "PaperClassifier",
]  # fmt: skip
