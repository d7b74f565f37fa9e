"""One loop for every model and method. It sees batches, an objective and an optimizer: no files, no formats, no methods."""
