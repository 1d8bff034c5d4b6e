"""The optimum of a cell, and the law of the optima."""
