"""Roles of the columns of a table: numbers, dates, categories, labels, weights; and what is learned of them."""
