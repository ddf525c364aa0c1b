"""Classification and acceptance of many series."""
