"""Runs rendered Kubernetes manifests on one machine: the pods are processes here. See docs/up.md."""
