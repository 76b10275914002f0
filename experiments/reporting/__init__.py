"""The page for people: what the maps are worth, in pictures and figures.

Read ``page.py`` (what the page is about) beside ``page.html.j2`` (its words); ``cases.py`` picks
and draws the pictures, ``plots.py`` draws the curves.
"""
