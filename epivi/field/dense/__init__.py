"""The field in dense algebra, slow and simple: what the compiled code is compared with."""
