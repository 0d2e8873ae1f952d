"""Measuring head scores: how much of a head's attention lands on what an answer needs (`headkv score`)."""
