"""The web side: what HTTP needs around the domain functions, and nothing of their rules.

`security` guards every request, `session` says who asks, `pages` and `assets` answer with HTML and
static files, `labeler` and `admin` are the routes, `app` puts them together.
"""
