"""What a trial costs: measured steps, and the prediction made of them."""
