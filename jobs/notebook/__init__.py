"""What notebooks and other programs call: a trained run, its networks on single images, its results."""
