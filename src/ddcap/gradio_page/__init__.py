"""A page for people: drop a picture, watch its caption come about, change its words."""
