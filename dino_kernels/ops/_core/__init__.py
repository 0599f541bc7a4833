"""What all ops share: the choice of a backend, registration, compiled libraries, strides."""
