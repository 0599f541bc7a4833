"""Modules that checkouts import by these names. `original` adds this folder to the path of a script that it runs."""
