"""Build of the site from docs/: links, reference pages, figures."""
