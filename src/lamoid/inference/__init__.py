"""From a prompt to text. Sampling and the generation loop work on numpy arrays; torch stays behind a decoder."""
