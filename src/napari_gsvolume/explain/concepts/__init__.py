"""Concepts in activations: concept vectors, probes, concept maps, patches and interventions."""
