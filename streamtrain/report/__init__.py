"""HTML reports: `streamtrain.report.run` of a training run's folder, `streamtrain.report.comparison` of a comparison.

Each is one file that needs nothing else. Names and values come from folders that anyone may have made; all of them are
escaped, and nothing is executed.
"""
