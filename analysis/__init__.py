"""What predict.py and metrics.py are made of."""
