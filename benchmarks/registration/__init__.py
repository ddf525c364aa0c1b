"""How near registration comes to the truth, and what it costs, against the published recipe."""
