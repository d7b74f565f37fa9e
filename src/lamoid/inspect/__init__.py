"""Looking at models and runs: pictures, drawn from the numbers of the code that ran."""
