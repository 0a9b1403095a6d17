"""How good are the predictions: replays every row of a table of measured serving results."""
