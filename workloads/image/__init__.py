"""Image classification: a small ResNet and a small ViT on real images."""

from workloads.image.workload import Image

__all__ = ["Image"]
