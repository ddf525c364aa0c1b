"""How well series are told from their headers, and how fast, against the published rules."""
