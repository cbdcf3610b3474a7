"""The CSWin network, independent of training."""
