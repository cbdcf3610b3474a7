"""The CSWin network; knows nothing of training."""
