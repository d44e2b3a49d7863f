"""A model as a static page that captions in the browser: nothing is computed on a server."""
