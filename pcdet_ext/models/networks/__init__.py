"""Whole networks beside detectors: from clouds to a class per point, a class per cloud, or a descriptor per cloud."""
