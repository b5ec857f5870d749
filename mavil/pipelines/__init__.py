"""Several runs from one file: stages that wait for each other, ablations, and the program that starts them one by one.

The standard library and yaml only: jobs are submitted from hosts without torch, and nothing here computes.
"""
