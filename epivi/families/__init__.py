"""What a model family does at each step of the workflow, one module a family; FAMILIES in epivi.models names them."""
