"""A page for people: drop an image, watch its caption come about, change its words."""
