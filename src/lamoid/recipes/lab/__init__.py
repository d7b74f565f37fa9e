"""The laboratory: what papers and articles say about the parts of a Llama, measured on this machine.

An experiment is a file with its claim, its rule of judgement, and functions that measure, judge, tabulate and draw.
"""
