"""Ways to adapt a model that exists: each is a function model -> model that leaves the architecture's page as it is."""
