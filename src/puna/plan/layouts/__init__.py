"""Choosing a layout: every legal one is searched, within constraints a person may give; suggestions when none fits."""
