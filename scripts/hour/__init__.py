"""The rows of the table of the first hour, and the data that they are run on."""
