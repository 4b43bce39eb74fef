"""Charts as SVG to stand inside an HTML page: text in, text out, with no script and nothing to load.

Every word that comes from outside is escaped.
"""
