"""What a training minimises: the likelihood of human captions, or the score of drawn ones."""
