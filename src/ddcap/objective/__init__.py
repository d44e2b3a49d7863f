"""What a training minimises: the likelihood of human captions."""
