"""Charts as SVG inside an HTML page: lines, bars, and a surface with paths over it.

Text in, text out, with no script and nothing to load. Every word that comes from outside is escaped.
"""
