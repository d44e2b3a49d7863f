"""How the site is built from docs/: links, reference pages, figures."""
