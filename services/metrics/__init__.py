"""Collects what every service measured and shows it to Prometheus."""
