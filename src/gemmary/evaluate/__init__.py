# SPDX-License-Identifier: Apache-2.0
"""Measuring a model: benchmarks, what it has by heart, and two systems side by side."""
