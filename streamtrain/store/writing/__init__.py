"""The writing of a dataset: journal, staging and writer."""
