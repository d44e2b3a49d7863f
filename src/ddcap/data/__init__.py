"""Images and captions on their way into batches."""
