"""Cohorts: many slides as one lazy thing, opened on demand and worked on in parallel."""

from microtome.cohort.opening import open_cohort

__all__ = ["open_cohort"]
