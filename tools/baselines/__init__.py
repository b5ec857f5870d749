"""What a pre-trained model is compared with: a small supervised CNN, and log-mel statistics with logistic regression."""
