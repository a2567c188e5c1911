"""Backbone Augmented Training: select, weigh and mix a backbone's data for an adaptation set."""
