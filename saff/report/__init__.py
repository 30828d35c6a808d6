"""The report of a run: one HTML page that opens from disk and needs no network.

``cards.py`` draws one image, ``plots.py`` the curves of the whole run, ``page.py`` puts them into
the template, and ``stored.py`` makes the page of a stored run.
"""
