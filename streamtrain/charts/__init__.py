"""Charts as SVG to stand inside an HTML page: text in, text out, with no script and nothing to load.

`streamtrain.charts.lines` draws curves, `streamtrain.charts.bars` amounts side by side, `streamtrain.charts.relief` a
surface with paths over it. Every word that comes from outside is escaped.
"""
