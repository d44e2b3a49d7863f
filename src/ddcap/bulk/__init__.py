"""Very many images: names walked, captions written as they come, jobs that go on after a kill."""
